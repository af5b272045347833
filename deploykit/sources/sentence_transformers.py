"""A sentence-transformers folder, read without that package: modules.json and the folders that it names.

Understood: Transformer (text), Pooling in every mode and combination, Dense, LayerNorm, Normalize, Dropout; the module
paths of all versions up to 6. Prompts, the maximum length and lower-casing go into the preprocessing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import RemoteCodeError, SourceError
from deploykit.sources import Identity, Options, Source, _folder
from deploykit.sources._options import only

if TYPE_CHECKING:
    from torch import nn

KIND = "sentence-transformers"

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
"""The keys of older folders, in the order in which several modes are concatenated."""

_RENAMED = {"mean_sqrt_len_tokens": "mean_sqrt_len", "weightedmean": "weighted_mean", "lasttoken": "last"}
_TAKEN = ("pooling", "normalize", "max_length", "fixed_length", "dim", "prompts", "outputs")
_STAGES = ("Dense", "LayerNorm", "Normalize", "Dropout")


@dataclass(frozen=True)
class Module:
    """One entry of modules.json: the class name and the folder of its files."""

    kind: str
    folder: Path


@dataclass(frozen=True)
class Encoding:
    """What config_sentence_transformers.json says of encoding.

    ``prompts`` are put before an input, by name, ``default`` is the one used when none is named, and ``dim`` how many
    numbers of a vector are kept (None: all).
    """

    prompts: Mapping[str, str]
    default: str | None
    dim: int | None


def matches(spec: str) -> bool:
    """A folder with modules.json."""
    return (Path(spec).expanduser() / "modules.json").is_file()


def identify(spec: str, options: Options) -> Identity:
    """Digest of every module's config and weights, and of the tokenizer."""
    folder = _folder.require_folder(spec)
    modules = read_modules(folder)
    files = set(_folder.deciding_files(modules[0].folder)) | {
        p for p in folder.glob("*.json") if not _folder.is_report(p)
    }
    for module in modules[1:]:
        files |= {p for p in module.folder.glob("*") if p.suffix in (".json", ".safetensors", ".bin")}
    return _folder.identity(KIND, folder, files, options, _folder.folder_facts(folder))


def open(spec: str, options: Options) -> Source:
    """Load the chain of modules as one torch module, in float32."""
    from deploykit.sources import _assemble, _checkpoint, _limits
    from deploykit.sources import _text as text
    from deploykit.sources._text_encoder import Pooled, text_parts

    folder = _folder.require_folder(spec)
    only(options, _TAKEN, f"{folder} is a sentence-transformers folder")
    modules = read_modules(folder)
    inner = modules[0].folder
    settings = _transformer_settings(inner)
    modes, own = pooling_modes(modules, options), read_encoding(folder)
    encoding = replace(own, prompts={**own.prompts, **(options.prompts or {})}, dim=options.dim or own.dim)
    _refuse_prompt_exclusion(modules, modes, encoding)
    checkpoint = _checkpoint.load(inner, options, pooling_is_explicit=True)
    if checkpoint.modality != "text":
        hint = "export the folder of the transformers model in it by itself"
        raise SourceError(f"{folder} encodes {checkpoint.modality}, not text", hint=hint)
    tokenizer = text.read_tokenizer(inner, options, lower_case=bool(settings.get("do_lower_case")))
    bound = _limits.bound_of(checkpoint, text.ordinary_token(tokenizer))
    said = _limits.said_by_files(tokenizer)
    length = _limits.decide(options, settings.get("max_seq_length") or _limits.capped(said, bound), said, bound)
    rows = getattr(checkpoint.config, "vocab_size", None)
    given = text.text_input(tokenizer, rows, checkpoint.accepts("token_type_ids"), length.tokens)
    fixed = options.fixed_length is not None
    given = replace(given, prompts=encoding.prompts, default_prompt=encoding.default, fixed=fixed, notes=length.notes)
    reason = "asked for" if options.pooling else "as the folder's Pooling module says"
    pooled = Pooled(modes, _stages(modules, options, encoding.dim), reason, for_decoders=True)
    parts = text_parts(KIND, folder, checkpoint, given, pooled, options)
    return _assemble.assemble(replace(parts, outputs=tuple(options.outputs or ())), checkpoint.missing)


def read_modules(folder: Path) -> list[Module]:
    """The chain of modules.json; `SourceError` when it holds something that is not understood."""
    entries = _folder.read_json(folder / "modules.json")
    try:
        named = [(str(entry["type"]), folder / str(entry.get("path", ""))) for entry in entries]
    except (TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{folder / 'modules.json'} is no list of modules", hint="fetch the file again") from error
    modules = []
    for kind, path in named:
        if not kind.startswith("sentence_transformers."):
            hint = "only the modules of sentence-transformers itself are read"
            raise RemoteCodeError(f"{folder} needs the module {kind}, which is code of its own", hint=hint)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise SourceError(f"{folder / 'modules.json'} points outside its folder: {path}", hint="do not use it")
        modules.append(Module(kind.rpartition(".")[2], path))
    chain = [module.kind for module in modules]
    unknown = [kind for kind in chain[2:] if kind not in _STAGES]
    if chain[:2] != ["Transformer", "Pooling"] or unknown:
        raise SourceError(
            f"{folder} is a chain of {' → '.join(chain) or 'nothing'}",
            hint=f"understood are Transformer → Pooling, then any of {', '.join(_STAGES)}",
        )
    for module in modules:
        if not module.folder.is_dir() and module.kind not in ("Normalize", "Dropout"):
            hint = "the folder was not downloaded whole"
            raise SourceError(f"{folder} lacks {module.folder.name}, named in modules.json", hint=hint)
    return modules


def _transformer_settings(folder: Path) -> dict[str, Any]:
    """sentence_bert_config.json or one of its older names; refuses what is not plain text encoding."""
    names = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    files = [folder / f"sentence_{name}_config.json" for name in names]
    settings = next((_folder.read_table(path) for path in files if path.exists()), {})
    task = settings.get("transformer_task", "feature-extraction")
    way = settings.get("modality_config", {}).get("text", {"method": "forward"})
    output = way.get("method_output_name", "last_hidden_state")
    if task != "feature-extraction" or way.get("method") != "forward" or output != "last_hidden_state":
        raise SourceError(
            f"{folder} is for {task} by {way.get('method')} → {output}, not for text embeddings from token vectors",
            hint="wrap it in a Python factory: py:package.module:factory",
        )
    return settings


def pooling_modes(modules: Sequence[Module], options: Options) -> tuple[str, ...]:
    """The modes of the Pooling module, or the one that was asked for."""
    if options.pooling is not None:
        return (options.pooling,)
    config = _folder.read_table(modules[1].folder / "config.json")
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        modes = [given] if isinstance(given, str) else list(given)
        return tuple(_RENAMED.get(mode, mode) for mode in modes)
    return tuple(mode for key, mode in _MODES.items() if config.get(key)) or ("mean",)


def read_encoding(folder: Path) -> Encoding:
    """Prompts and truncation of config_sentence_transformers.json; nothing of either where there is none."""
    path = folder / "config_sentence_transformers.json"
    config = _folder.read_table(path) if path.exists() else {}
    texts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in texts:
        hint = f"it has: {', '.join(texts) or 'none'}"
        raise SourceError(f"{path} names the default prompt '{default}', which is not there", hint=hint)
    dim = config.get("truncate_dim")
    if dim is not None and (type(dim) is not int or dim < 1):
        raise SourceError(f"{path} has truncate_dim {dim!r}", hint="it counts the numbers of a vector: 1 or more")
    return Encoding(texts, default, dim)


def _refuse_prompt_exclusion(modules: Sequence[Module], modes: Sequence[str], encoding: Encoding) -> None:
    """Pooling without the prompt's tokens needs the prompt's length in the graph, which has no input for it.

    The last token stands behind every prompt, so that pooling is the same either way.
    """
    config = _folder.read_table(modules[1].folder / "config.json")
    if any(encoding.prompts.values()) and not config.get("include_prompt", True) and tuple(modes) != ("last",):
        raise SourceError(
            f"{modules[1].folder.parent} leaves the prompt out of the pooling (include_prompt = false)",
            hint="such instruction models cannot be exported as they are: their vectors would silently differ",
        )


def _stages(modules: Sequence[Module], options: Options, dim: int | None) -> list[nn.Module]:
    """What follows the pooling, with the overrides of truncation and normalisation."""
    from deploykit.graph.pooling import Normalize, Truncate

    chain = [_stage(module) for module in modules[2:] if module.kind != "Dropout"]
    normalize = bool(chain) and isinstance(chain[-1], Normalize)
    if normalize:
        chain.pop()
    if dim is not None:
        chain.append(Truncate(dim))
    if normalize if options.normalize is None else options.normalize:
        chain.append(Normalize())
    return chain


def _stage(module: Module) -> nn.Module:
    from deploykit.graph.pooling import Dense, LayerNorm, Normalize

    config_path = module.folder / "config.json"
    config = _folder.read_table(config_path) if config_path.exists() else {}
    taken = (config.get("module_input_name"), config.get("module_output_name"))
    if any(name not in (None, "sentence_embedding") for name in taken):
        raise SourceError(f"{module.folder} works on {taken[0]}", hint="only stages behind the pooling are understood")
    if module.kind == "Normalize":
        return Normalize()
    if module.kind == "LayerNorm":
        return _with_weights(LayerNorm(int(config["dimension"])), module.folder)
    dense = Dense(
        int(config["in_features"]),
        int(config["out_features"]),
        bias=bool(config.get("bias", True)),
        activation=_activation(config.get("activation_function"), module.folder),
        residual=bool(config.get("use_residual", False)),
    )
    return _with_weights(dense, module.folder)


def _activation(name: str | None, folder: Path) -> nn.Module:
    """An activation of torch.nn by its full name; Tanh when none is named, as in sentence-transformers."""
    from torch import nn

    if name is None:
        return nn.Tanh()
    found = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise SourceError(f"{folder} has the activation {name}", hint="only activations of torch.nn are understood")
    return found()


def _with_weights(stage: nn.Module, folder: Path) -> nn.Module:
    """Load a stage's weights: safetensors, else tensors alone from pytorch_model.bin."""
    import torch
    from safetensors.torch import load_file

    path = _folder.weight_files(folder)[0]
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        stage.load_state_dict(weights)
    except Exception as error:
        raise SourceError(f"{path} does not fit its config: {error}", hint="fetch the folder again") from error
    return stage.float().eval().requires_grad_(False)
