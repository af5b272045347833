"""A sentence-transformers folder, read without that package: modules.json and the folders that it names.

Understood: Transformer and CLIPModel, StaticEmbedding and WordEmbeddings; Dense, Normalize, WordWeights, CNN, LSTM and
WeightedLayerPooling on token vectors; Pooling in every mode and combination; Dense, LayerNorm, Normalize and Dropout on
vectors; one route of a Router; the module paths of all versions up to 6. The parts of a folder are read by
`deploykit.sources._sentence_transformers`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.sources import Identity, Options, Source, _folder
from deploykit.sources._options import only

if TYPE_CHECKING:
    from deploykit.sources._assemble import Parts
    from deploykit.sources._checkpoint import Checkpoint
    from deploykit.sources._sentence_transformers.encoding import Encoding
    from deploykit.sources._sentence_transformers.modules import Chain
    from deploykit.sources._text import TextInput

KIND = "sentence-transformers"
_TAKEN = ("pooling", "normalize", "max_length", "fixed_length", "dim", "tower", "route", "prompts", "outputs")
_TABLES = ("StaticEmbedding", "WordEmbeddings")
_DECIDING = (".json", ".txt", ".model", ".vocab", ".jinja", ".py", ".safetensors", ".bin")


def matches(spec: str) -> bool:
    """A folder with modules.json."""
    return (Path(spec).expanduser() / "modules.json").is_file()


def identify(spec: str, options: Options) -> Identity:
    """Digest of every module's config and weights, and of the tokenizer."""
    from deploykit.sources._sentence_transformers.modules import read_chain

    folder = _folder.require_folder(spec)
    files = {p for p in folder.glob("*.json") if not _folder.is_report(p)}
    for module in read_chain(folder, options.route).modules:
        files |= {p for p in module.folder.glob("*") if _decides(p)}
    return _folder.identity(KIND, folder, files, options, _folder.folder_facts(folder))


def _decides(path: Path) -> bool:
    return path.is_file() and path.suffix in _DECIDING and not _folder.is_report(path)


def open(spec: str, options: Options) -> Source:
    """Load the chain of modules as one torch module, in float32."""
    from deploykit.sources import _assemble
    from deploykit.sources._sentence_transformers.encoding import read_encoding
    from deploykit.sources._sentence_transformers.modules import read_chain

    folder = _folder.require_folder(spec)
    only(options, _TAKEN, f"{folder} is a sentence-transformers folder")
    own = read_encoding(folder)
    encoding = replace(own, prompts={**own.prompts, **(options.prompts or {})})
    chain = read_chain(folder, options.route)
    parts, missing = (_words if chain.first.kind in _TABLES else _transformer)(folder, chain, options, encoding)
    facts = parts.provenance
    if encoding.similarity:
        facts["similarity"] = encoding.similarity
    if chain_route := next((module.route for module in chain.modules if module.route), ""):
        facts["route"] = chain_route
    return _assemble.assemble(replace(parts, provenance=facts, outputs=tuple(options.outputs or ())), missing)


def _transformer(folder: Path, chain: Chain, options: Options, encoding: Encoding) -> tuple[Parts, Any]:
    from deploykit.sources._sentence_transformers import settings as reading
    from deploykit.sources._sentence_transformers import transformer
    from deploykit.sources._sentence_transformers.stages import pooling_modes

    settings = reading.read_settings(chain.first.folder, dual=chain.first.kind == "CLIPModel")
    modality = transformer.chosen_modality(folder, settings, options)
    way = settings.ways["message" if modality == "text" and "message" in settings.ways else modality]
    _check_pooling(folder, chain, gives_vector=settings.gives == reading.VECTOR, options=options)
    checkpoint = transformer.load(chain, settings, way, modality, options)
    if modality == "image":
        return _image(folder, chain, options, encoding, checkpoint, settings), checkpoint.missing
    modes = pooling_modes(chain, options) if chain.pooling else ()
    given = transformer.text_input(chain, settings, checkpoint, options, encoding, modes)
    checkpoint = transformer.staged(checkpoint, chain, settings, way, modes)
    return _text(folder, chain, options, encoding, checkpoint, given), checkpoint.missing


def _words(folder: Path, chain: Chain, options: Options, encoding: Encoding) -> tuple[Parts, Any]:
    from deploykit.sources._sentence_transformers import words
    from deploykit.sources._sentence_transformers.stages import pooling_modes

    static = chain.first.kind == "StaticEmbedding"
    if options.tower is not None:
        raise SourceError(f"{folder} has no towers", hint="leave 'tower' out")
    _check_pooling(folder, chain, gives_vector=static, options=options)
    if static:
        checkpoint, given = words.open_static(chain, options)
    else:
        checkpoint, given = words.open_words(chain, options, pooling_modes(chain, options))
    prompts, fixed = encoding.prompts, options.fixed_length is not None
    given = replace(given, prompts=prompts, default_prompt=encoding.default, fixed=fixed)
    return _text(folder, chain, options, encoding, checkpoint, given), {}


def _text(
    folder: Path, chain: Chain, options: Options, encoding: Encoding, checkpoint: Checkpoint, given: TextInput
) -> Parts:
    from deploykit.sources._sentence_transformers.stages import on_vectors, pooling_modes
    from deploykit.sources._text_encoder import Pooled, text_parts

    if chain.first.kind == "StaticEmbedding":
        modes: tuple[str, ...] = ("mean",)
        reason = "the mean of the tokens, as a StaticEmbedding is"
    elif chain.pooling is None:
        modes, reason = (), "the model's own, as the folder says"
    else:
        modes = pooling_modes(chain, options)
        reason = "asked for" if options.pooling else "as the folder's Pooling module says"
    words = chain.first.kind in _TABLES
    pooled = Pooled(modes, on_vectors(chain, options, encoding), reason, for_decoders=True, context_free=words)
    checkpoint = replace(checkpoint, folder=chain.first.folder)
    return text_parts(KIND, folder, checkpoint, given, pooled, options)


def _image(
    folder: Path, chain: Chain, options: Options, encoding: Encoding, checkpoint: Checkpoint, settings: Any
) -> Parts:
    """Pictures: the model's own pooled vector or one pooling of its places, then what stands behind it in the chain."""
    from torch import nn

    from deploykit.graph.pooling import Normalize
    from deploykit.sources import _image
    from deploykit.sources._encoders import ImageEncoder
    from deploykit.sources._sentence_transformers.stages import on_vectors, pooling_modes

    modes = pooling_modes(chain, options) if chain.pooling else ("pooler",)
    path = ("last_hidden_state",) if chain.pooling else ("pooler_output",)
    other = settings.calls.image or settings.tokenizer or chain.on_tokens or settings.ways["image"].path != path
    if other or len(modes) != 1 or (chain.pooling and checkpoint.method != "forward"):
        hint = "export the folder of the transformers model in it by itself"
        raise SourceError(f"{folder} has settings or modules that are understood for texts alone", hint=hint)
    pooling = modes[0] if checkpoint.method == "forward" else None
    plain = replace(options, dim=None, normalize=None, pooling=pooling)
    parts = _image.parts(chain.first.folder, checkpoint, plain)
    stages = on_vectors(chain, options, encoding)
    assert isinstance(parts.module, ImageEncoder)
    parts.module.head.stages = nn.Sequential(*stages)
    return replace(
        parts,
        name=_folder.folder_facts(folder)["name"],
        normalized=bool(stages) and isinstance(stages[-1], Normalize),
        provenance={**parts.provenance, "kind": KIND, **_folder.folder_facts(folder)},
        license=_folder.license_file(folder),
    )


def _check_pooling(folder: Path, chain: Chain, *, gives_vector: bool, options: Options) -> None:
    """`SourceError` if token vectors are not pooled, or if what is no token vector is."""
    if gives_vector and (chain.pooling or chain.on_tokens):
        raise SourceError(
            f"{folder} pools what {chain.first.kind} gives, which is one vector already", hint="fetch the folder again"
        )
    if not gives_vector and chain.pooling is None:
        raise SourceError(
            f"{folder} is a chain of {' → '.join(module.kind for module in chain.modules)}: nothing pools its tokens",
            hint="it gives a vector for each token, or its modules.json is not whole",
        )
    if gives_vector and options.pooling not in (None, "none"):
        raise SourceError(f"{folder} pools by itself", hint="leave 'pooling' out")
