"""Pooling, and the modules before and behind it, as torch modules with their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.sources import Options, _folder
from deploykit.sources._checkpoint import first_line
from deploykit.sources._sentence_transformers.encoding import Encoding
from deploykit.sources._sentence_transformers.keys import one_of, refuse_unknown
from deploykit.sources._sentence_transformers.modules import Chain, Module
from deploykit.sources._sentence_transformers.settings import TOKENS, VECTOR

if TYPE_CHECKING:
    import torch
    from torch import nn

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
_POOLING = ("word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *_MODES)
_NAMES = ("module_input_name", "module_output_name")
_CONFIGS = {"CNN": "cnn_config.json", "LSTM": "lstm_config.json"}
_KEYS = {
    "Dense": ("in_features", "out_features", "bias", "activation_function", "use_residual", *_NAMES),
    "Normalize": _NAMES,
    "LayerNorm": ("dimension",),
    "Dropout": ("dropout",),
    "WordWeights": ("vocab", "word_weights", "unknown_word_weight"),
    "WeightedLayerPooling": ("word_embedding_dimension", "embedding_dimension", "layer_start", "num_hidden_layers"),
    "CNN": ("in_word_embedding_dimension", "in_embedding_dimension", "out_channels", "kernel_sizes", "stride_sizes"),
    "LSTM": (
        *("word_embedding_dimension", "embedding_dimension", "hidden_dim", "num_layers", "dropout", "bidirectional"),
    ),
}


def pooling_modes(chain: Chain, options: Options) -> tuple[str, ...]:
    """The modes of the Pooling module, or the one that was asked for."""
    if options.pooling is not None:
        return (options.pooling,)
    assert chain.pooling is not None
    config = pooling_config(chain.pooling)
    if "pooling_mode" in config:
        given = one_of(chain.pooling.folder, "pooling_mode", config["pooling_mode"], (str, list))
        modes = [given] if isinstance(given, str) else [one_of(chain.pooling.folder, "a mode", m, str) for m in given]
        return tuple(_RENAMED.get(mode, mode) for mode in modes)
    return tuple(mode for key, mode in _MODES.items() if config.get(key)) or ("mean",)


def pooling_config(module: Module) -> dict[str, Any]:
    """The keys of a Pooling module."""
    path = module.folder / "config.json"
    config = _folder.read_table(path)
    refuse_unknown(path, config, _POOLING)
    return config


def on_vectors(chain: Chain, options: Options, encoding: Encoding) -> list[nn.Module]:
    """What follows the pooling, with the overrides of truncation and normalisation.

    The folder's own truncation comes last and leaves vectors as short as they are then; one that was asked for comes
    before the normalisation.
    """
    from deploykit.graph.pooling import Normalize, Truncate

    stages = [_on_vector(module) for module in chain.on_vectors if module.kind != "Dropout"]
    asked = options.dim is not None or options.normalize is not None
    if not asked:
        return stages if encoding.dim is None else [*stages, Truncate(encoding.dim, at_most=True)]
    normalize = bool(stages) and isinstance(stages[-1], Normalize)
    if normalize:
        stages.pop()
    dim = options.dim or encoding.dim
    if dim is not None:
        stages.append(Truncate(dim))
    if normalize if options.normalize is None else options.normalize:
        stages.append(Normalize())
    return stages


def on_tokens(chain: Chain, modes: Sequence[str], *, layered: bool) -> list[nn.Module]:
    """What stands before the pooling; ``layered``: the model gives all its layers, or else nothing weighs them."""
    kept = (module for module in chain.on_tokens if layered or module.kind != "WeightedLayerPooling")
    return [_on_token(module, modes) for module in kept]


def _on_vector(module: Module) -> nn.Module:
    with _explained(module):
        return _made_for_vectors(module)


def _on_token(module: Module, modes: Sequence[str]) -> nn.Module:
    with _explained(module):
        return _made_for_tokens(module, modes)


@contextmanager
def _explained(module: Module) -> Iterator[None]:
    """Turn what a wrong or missing number in a config leads to into a `SourceError` that names the module."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        fact = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        hint = "its config is damaged: fetch the folder again"
        raise SourceError(f"the module {module.kind} in {module.folder} cannot be made: {fact}", hint=hint) from error


def _made_for_vectors(module: Module) -> nn.Module:
    config = _config(module, VECTOR)
    if module.kind == "Normalize":
        from deploykit.graph.pooling import Normalize

        return Normalize()
    if module.kind == "LayerNorm":
        from deploykit.graph.pooling import LayerNorm

        return _with_weights(LayerNorm(int(config["dimension"])), module.folder)
    return _dense(module, config)


def _made_for_tokens(module: Module, modes: Sequence[str]) -> nn.Module:
    from deploykit.sources._sentence_transformers import layers

    config = _config(module, TOKENS)
    if module.kind in ("Dense", "Normalize"):
        return layers.on_each_token(_dense(module, config) if module.kind == "Dense" else None)
    if module.kind == "WordWeights":
        return _word_weights(module.folder, config, modes)
    if module.kind == "CNN":
        return _convolutions(module.folder, config)
    if module.kind == "LSTM":
        width = int(config.get("embedding_dimension") or config["word_embedding_dimension"])
        both = bool(config.get("bidirectional", True))
        found = layers.Recurrent(width, int(config["hidden_dim"]), int(config.get("num_layers", 1)), both_ways=both)
        _with_weights(found, module.folder)
        return found.split()
    first, count = int(config.get("layer_start", 4)), int(config.get("num_hidden_layers", 12))
    return _with_weights(layers.WeightedLayers(first, count), module.folder)


def _config(module: Module, place: str) -> dict[str, Any]:
    """A module's config; `SourceError` for a key that is not known, and for a module that works elsewhere."""
    path = module.folder / _CONFIGS.get(module.kind, "config.json")
    if not path.exists() and module.kind in ("Normalize", "Dropout"):
        config: dict[str, Any] = {}
    else:
        config = _folder.read_table(path)
    refuse_unknown(path, config, _KEYS[module.kind])
    reads = config.get("module_input_name") or VECTOR
    writes = config.get("module_output_name") or reads
    if module.kind in ("Dense", "Normalize") and (reads, writes) != (place, place):
        hint = f"in that place of the chain only modules from {place} to {place} are understood"
        raise SourceError(f"{module.folder} works on {reads} and writes {writes}", hint=hint)
    return config


def _word_weights(folder: Path, config: dict[str, Any], modes: Sequence[str]) -> nn.Module:
    from deploykit.sources._sentence_transformers.layers import WordWeights

    if len(modes) != 1:
        hint = "each of them would divide by other weights: choose one with pooling"
        raise SourceError(f"{folder} weighs words before {len(modes)} ways of pooling", hint=hint)
    weights, other = config.get("word_weights") or {}, float(config.get("unknown_word_weight", 1))
    values = [float(weights.get(word, weights.get(word.lower(), other))) for word in config["vocab"]]
    return WordWeights(values, modes[0])


def _convolutions(folder: Path, config: dict[str, Any]) -> nn.Module:
    from deploykit.sources._sentence_transformers.layers import Convolutions

    kernels = [int(size) for size in config.get("kernel_sizes") or (1, 3, 5)]
    if any(size % 2 == 0 for size in kernels) or set(config.get("stride_sizes") or [1]) != {1}:
        hint = "only odd kernels with a stride of 1 give one vector for each token"
        raise SourceError(f"{folder} has convolutions that change the length of a text", hint=hint)
    width = int(config.get("in_embedding_dimension") or config["in_word_embedding_dimension"])
    return _with_weights(Convolutions(width, int(config.get("out_channels", 256)), kernels), folder)


def _dense(module: Module, config: dict[str, Any]) -> nn.Module:
    from deploykit.graph.pooling import Dense

    dense = Dense(
        int(config["in_features"]),
        int(config["out_features"]),
        bias=bool(config.get("bias", True)),
        activation=_activation(config.get("activation_function"), module.folder),
        residual=bool(one_of(module.folder, "use_residual", config.get("use_residual", False), bool)),
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


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """A module's tensors: safetensors, else tensors alone from pytorch_model.bin."""
    import torch
    from safetensors.torch import load_file

    path = _folder.weight_files(folder)[0]
    try:
        if path.suffix == ".safetensors":
            weights: dict[str, torch.Tensor] = load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="fetch the folder again") from error
    return weights


def _with_weights(stage: nn.Module, folder: Path) -> nn.Module:
    """Load a stage's weights."""
    weights = read_weights(folder)
    try:
        stage.load_state_dict(weights)
    except Exception as error:
        raise SourceError(f"the weights in {folder} do not fit its config: {error}", hint="fetch it again") from error
    return stage.float().eval().requires_grad_(False)
