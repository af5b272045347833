"""A plain transformers folder, or a hub id, of any modality.

Modality, pooling and preprocessing come from the folder's own files and from the loaded model; whatever had to be
decided here is said in the card's provenance.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import SourceError
from deploykit.sources import Identity, Options, Source, _folder
from deploykit.sources._options import only

if TYPE_CHECKING:
    from deploykit.sources._assemble import Parts
    from deploykit.sources._checkpoint import Checkpoint
    from deploykit.sources._text_encoder import Pooled

KIND = "transformers"
_WORDS = {"text": "texts", "image": "images", "audio": "sounds", "tensor": "video clips"}


def matches(spec: str) -> bool:
    """Any folder; what is wrong with it is said when it is opened. A path that is not there is taken for one too."""
    path = Path(spec).expanduser()
    return path.is_dir() or (not path.exists() and ("/" in spec or spec.startswith(".")))


def identify(spec: str, options: Options) -> Identity:
    """Digest of configs, tokenizer and weights."""
    folder = _folder.require_folder(spec)
    _folder.read_table(folder / "config.json")
    files = _folder.deciding_files(folder)
    return _folder.identity(KIND, folder, files, options, _folder.folder_facts(folder))


def open(spec: str, options: Options) -> Source:
    """Load the folder's encoder with pooling and normalisation, in float32."""
    from deploykit.sources import _assemble, _audio, _checkpoint, _image

    folder = _folder.require_folder(spec)
    if options.pooling == "none":
        hint = "choose mean, cls, last, max, or pooler for the model's own pooled output"
        raise SourceError(f"{folder} gives token vectors, so its pooling cannot be none", hint=hint)
    if options.preprocess not in (None, "none"):
        hint = "leave it out for the folder's own preprocessing, or say none for ready tensors"
        raise SourceError(f"there is no preprocessing '{options.preprocess}'", hint=hint)
    checkpoint = _checkpoint.load(folder, options)
    only(options, _taken(checkpoint.modality), f"{folder} encodes {_WORDS[checkpoint.modality]}")
    if options.preprocess == "none":
        from deploykit.sources._ready import open_ready

        return _assemble.checked(open_ready(folder, checkpoint, options), checkpoint.missing)
    if checkpoint.modality == "tensor":
        hint = "bundles carry no video preprocessing: say preprocess = 'none' for one that takes ready tensors"
        raise SourceError(f"{checkpoint.architecture} takes '{checkpoint.input_name}'", hint=hint)
    build = {"text": _text, "image": _image.parts, "audio": _audio.parts}[checkpoint.modality]
    parts = replace(build(folder, checkpoint, options), outputs=tuple(options.outputs or ()))
    return _assemble.assemble(parts, checkpoint.missing)


def _taken(modality: str) -> tuple[str, ...]:
    """The options that an encoder of this modality can honour."""
    texts = ("fixed_length", "prompts") if modality == "text" else ()
    lengths = ("max_length",) if modality in ("text", "audio") else ()
    return ("pooling", "normalize", "dim", "tower", "preprocess", "outputs", *texts, *lengths)


def _text(folder: Path, checkpoint: Checkpoint, options: Options) -> Parts:
    from deploykit.sources import _limits, _padding
    from deploykit.sources import _text as text
    from deploykit.sources._text_encoder import text_parts

    tokenizer = text.read_tokenizer(folder, options)
    bound = _limits.bound_of(checkpoint, text.ordinary_token(tokenizer))
    published = _padding.published(folder, tokenizer, str(getattr(checkpoint.body.config, "model_type", "")))
    said = _limits.said_by_files(tokenizer)
    length = _limits.decide(options, published.longest, said, bound)
    published = replace(published, full=_limits.unasked(published.longest, said, bound))
    rows = getattr(checkpoint.config, "vocab_size", None)
    given = text.text_input(tokenizer, rows, checkpoint.accepts("token_type_ids"), length.tokens)
    prompts, fixed = dict(options.prompts or {}), options.fixed_length is not None
    given = replace(given, fixed=fixed, prompts=prompts, notes=length.notes)
    return text_parts(KIND, folder, checkpoint, given, _pooled(checkpoint, options), options, published)


def _pooled(checkpoint: Checkpoint, options: Options) -> Pooled:
    """The pooling asked for, else the mean; a tower pools by itself."""
    from deploykit.sources._checkpoint import POOLINGS_OF_DECODERS, PROJECTED
    from deploykit.sources._encoders import stages
    from deploykit.sources._text_encoder import Pooled

    behind = stages(options, bool(options.normalize))
    if checkpoint.method != "forward":
        return Pooled((), behind, "the tower pools by itself", True)
    if checkpoint.architecture.endswith(PROJECTED) and not options.pooling:
        return Pooled((), behind, "the tower pools and projects by itself", True)
    reason = "asked for" if options.pooling else "mean over the tokens, because the folder names no pooling"
    pooling = options.pooling or "mean"
    modes = () if pooling == "pooler" else (pooling,)
    return Pooled(modes, behind, reason, pooling in POOLINGS_OF_DECODERS, by_default=not options.pooling)
