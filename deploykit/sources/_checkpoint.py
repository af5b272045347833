"""Loading the encoder of a transformers folder, and refusing what is none.

Nothing here looks at names of architectures to decide how to treat a model: the configuration, the forward signature
and the model's own behaviour decide. Files are local by now, and transformers is told to keep to them.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import MissingError, SourceError
from deploykit.runtime.install import pip_install
from deploykit.sources import Options, _code, _heads
from deploykit.sources._folder import digest_of, folder_facts, read_table, weight_files

if TYPE_CHECKING:
    import torch

_GENERATIVE = ("ForCausalLM", "LMHeadModel")
PROJECTED = "WithProjection"
"""The end of the names of classes that are one tower of a dual encoder, with its projection."""
POOLINGS_OF_DECODERS = ("last", "weighted_mean")
_MODALITY = {
    "input_ids": "text",
    "pixel_values": "image",
    "input_values": "audio",
    "input_features": "audio",
    "pixel_values_videos": "tensor",
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded encoder.

    ``body`` is the torch module to call (the encoder half of an encoder-decoder), ``input_name`` its main input,
    ``method`` the method to call on it, ``missing`` the tensors that its files do not hold and that are random now.
    ``folder`` holds the weights, if that is another than the source's.
    """

    body: torch.nn.Module
    config: Any
    input_name: str
    modality: str
    architecture: str
    missing: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()
    method: str = "forward"
    folder: Path | None = None

    def accepts(self, name: str) -> bool:
        """Whether the method has an argument of that name."""
        return name in inspect.signature(getattr(self.body, self.method)).parameters


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' reports and progress bars: what matters in them comes back as facts or errors."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load(
    folder: Path,
    options: Options,
    *,
    pooling_is_explicit: bool = False,
    model_arguments: Mapping[str, Any] | None = None,
    config_arguments: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Load the encoder of ``folder`` in float32, ready for inference.

    ``pooling_is_explicit``: the folder's own files name a pooling, so a decoder is meant to be used as an encoder.
    The arguments are those of ``from_pretrained`` of the model and of its config, if the folder names any.
    """
    if (folder / "adapter_config.json").exists():
        raise SourceError(  # transformers applies it where peft is installed, and drops it without a word elsewhere
            f"{folder} holds a whole model and an adapter for it, and nothing says which is meant",
            hint="kind = 'peft' in [source] of a recipe merges it; for the model alone, move adapter_config.json away",
        )
    settings = read_table(folder / "config.json")
    _check_architecture(folder, settings, options, pooling_is_explicit)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingError(f"{error.name} is not installed", hint=pip_install("export")) from error
    _check_code(folder, settings, options)
    weights = weight_files(folder)
    with quiet(), _explained(folder):
        model, report = (_class_named(settings) or transformers.AutoModel).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=options.trust_remote_code,
            use_safetensors=weights[0].suffix == ".safetensors",
            dtype=torch.float32,
            output_loading_info=True,
            **_arguments(folder, options, model_arguments or {}, config_arguments or {}),
        )
    _refuse_unreadable(folder, report)
    _refuse_class_of_transformers(folder, settings, model)
    model.eval().requires_grad_(False)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    missing = {key: tensors[key] for key in sorted(report["missing_keys"]) if key in tensors}
    head = _heads.left_out(settings.get("architectures") or (), model, report["unexpected_keys"])
    notes = (*((head.note,) if head else ()), *_code.note(settings, model))
    found = _encoder_of(model, missing, options)
    if found.modality == "text" and found.method == "forward" and options.pooling is None and not pooling_is_explicit:
        _heads.refuse_guess(head, folder)
    return replace(found, notes=(*notes, *found.notes))


def _arguments(folder: Path, options: Options, model: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``from_pretrained`` of a model gets beside the usual. Without a config of its own it would take arguments
    of the model for changes of that.
    """
    if not model and not config:
        return {}
    from transformers import AutoConfig

    trust = options.trust_remote_code
    made = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust, **config)
    return {**model, "config": made}


def _class_named(settings: Mapping[str, Any]) -> Any:
    """The class that a config names, where `AutoModel` has no model for it: a tower saved by itself is one; or where
    it has one without the projection into the common space. Only transformers' own; None for any other.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind, name = settings.get("model_type"), next(iter(settings.get("architectures") or []), "")
    if kind not in CONFIG_MAPPING or "AutoModel" in _code.model_classes(settings):
        return None
    if CONFIG_MAPPING[kind] in MODEL_MAPPING and not name.endswith(PROJECTED):
        return None
    named = getattr(transformers, name, None)
    return named if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel) else None


def _check_architecture(folder: Path, settings: Mapping[str, Any], options: Options, explicit: bool) -> None:
    """Refuse generative models by what the config declares, before gigabytes of weights are read."""
    name = next(iter(settings.get("architectures") or []), "")
    generative = name.endswith(_GENERATIVE) and not settings.get("is_encoder_decoder", False)
    if generative and not explicit and options.pooling not in POOLINGS_OF_DECODERS:
        raise no_encoder(name, folder)


def no_encoder(name: str, folder: Path) -> SourceError:
    return SourceError(
        f"{name} in {folder} is a decoder: a token sees only the tokens before it, so it gives no embedding by itself",
        hint="if it was trained as an embedder, say so with pooling = 'last'",
    )


def _check_code(folder: Path, settings: Mapping[str, Any], options: Options) -> None:
    """Refuse code of the folder's own that is not allowed, and a model whose class transformers does not have."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    kind = settings.get("model_type")
    instead = MODEL_MAPPING_NAMES.get(kind) if kind in CONFIG_MAPPING else None
    _code.refuse_model(folder, settings, options, instead if isinstance(instead, str) else "")
    if kind in CONFIG_MAPPING or options.trust_remote_code:
        return
    if kind is None:
        hint = "config.json of a transformers model names it; is this another library's folder?"
        raise SourceError(f"{folder / 'config.json'} names no model_type", hint=hint)
    raise SourceError(
        f"transformers {transformers.__version__} does not know the architecture '{kind}' of {folder}",
        hint="a newer transformers may; or wrap the model in a Python factory: py:package.module:factory",
    )


def _refuse_class_of_transformers(folder: Path, settings: Mapping[str, Any], model: Any) -> None:
    """Code for `AutoModel` that was allowed must be what runs: nobody asked for transformers' own class."""
    if "AutoModel" in _code.model_classes(settings) and type(model).__module__.startswith("transformers."):
        raise SourceError(
            f"{folder} names code of its own for AutoModel, and transformers ran its own {type(model).__name__}",
            hint="wrap the model in a Python factory: py:package.module:factory",
        )


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what transformers raises into deploykit's errors."""
    try:
        yield
    except ImportError as error:
        raise MissingError(f"{folder} needs another package: {first_line(error)}", hint="install it") from error
    except pickle.UnpicklingError as error:
        hint = "load it where you trust it and save it with save_pretrained (safetensors)"
        raise SourceError(f"the weights of {folder} hold more than tensors, which is refused", hint=hint) from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        hint = "is the folder whole, and made for this version of transformers?"
        raise SourceError(f"transformers cannot load {folder}: {first_line(error)}", hint=hint) from error


def first_line(error: BaseException) -> str:
    """The first line of a message that may be pages long."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _refuse_unreadable(folder: Path, report: Mapping[str, Any]) -> None:
    wrong = report.get("mismatched_keys") or report.get("error_msgs")
    if wrong:
        first = sorted(str(item) for item in wrong)[0]
        hint = "config.json and the weights belong to different models"
        raise SourceError(f"the weights in {folder} do not fit its config: {first}", hint=hint)


def _encoder_of(model: Any, missing: Mapping[str, torch.Tensor], options: Options) -> Checkpoint:
    """The part of a model that encodes: a tower of a dual encoder, the encoder of an encoder-decoder, or all of it."""
    config, name = model.config, type(model).__name__
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if hasattr(model, "get_text_features"):
        return _tower(model, missing, options)
    if options.tower is not None:
        raise SourceError(f"{name} has no towers", hint="leave 'tower' out")
    notes = _unmasked(config)
    if getattr(config, "is_encoder_decoder", False) or _wants_decoder_inputs(model):
        notes += (f"the encoder half of {name}",)
        model = model.get_encoder()
    input_name = _main_input(model)
    if input_name not in _MODALITY:
        hint = "wrap it in a Python factory: py:package.module:factory"
        raise SourceError(f"{name} takes '{input_name}', which is no text, image or audio input", hint=hint)
    return Checkpoint(model, config, input_name, _MODALITY[input_name], name, missing, notes)


def _main_input(model: Any) -> str:
    """The input that the model's class names; of a class that inherited another's name, the one that it takes."""
    named = str(getattr(model, "main_input_name", "input_ids"))
    takes = inspect.signature(model.forward).parameters
    return named if named in takes else next((name for name in _MODALITY if name in takes), named)


def _unmasked(config: Any) -> tuple[str, ...]:
    """Switch off the masking that a model was pretrained with and would encode with too; a note where it was on."""
    ratio = getattr(config, "mask_ratio", None)
    if not isinstance(ratio, float) or ratio == 0.0:
        return ()
    config.mask_ratio = 0.0
    return (f"the masking of its pretraining is off: an embedding sees the whole input (mask_ratio was {ratio})",)


def _wants_decoder_inputs(model: Any) -> bool:
    """A model of two halves whatever its config says: some are saved by a class that is the encoder alone."""
    return hasattr(model, "get_encoder") and "decoder_input_ids" in inspect.signature(model.forward).parameters


def _tower(model: Any, missing: Mapping[str, torch.Tensor], options: Options) -> Checkpoint:
    """One half of a dual encoder such as CLIP, with its projection into the common space."""
    name = type(model).__name__
    towers = {
        "text": ("get_text_features", "input_ids"),
        "vision": ("get_image_features", "pixel_values"),
        "audio": ("get_audio_features", "input_features"),
    }
    have = [tower for tower, (method, _) in towers.items() if hasattr(model, method)]
    if options.tower not in have:
        asked = f"and has no tower '{options.tower}'" if options.tower else "and one of its encoders must be chosen"
        raise SourceError(
            f"{name} takes more than one kind of input, {asked}",
            hint="choose one: " + " or ".join(f"tower = '{tower}'" for tower in have),
        )
    if options.pooling not in (None, "none"):
        raise SourceError(f"the towers of {name} pool by themselves", hint="leave 'pooling' out")
    method, input_name = towers[options.tower]
    config = getattr(model.config, f"{options.tower}_config", model.config)
    notes = (f"the {options.tower} tower of {name}",)
    return Checkpoint(model, config, input_name, _MODALITY[input_name], name, missing, notes, method)


def provenance(kind: str, folder: Path, checkpoint: Checkpoint, pooling_reason: str) -> dict[str, Any]:
    """Where the weights came from and what was decided on the way."""
    import transformers

    return {
        "kind": kind,
        **folder_facts(folder),
        "architecture": checkpoint.architecture,
        "weights_sha256": digest_of(weight_files(checkpoint.folder or folder)),
        "transformers": transformers.__version__,
        "pooling": pooling_reason,
        "notes": [*checkpoint.notes, *_missing_note(checkpoint.missing)],
    }


def _missing_note(missing: Mapping[str, torch.Tensor]) -> list[str]:
    if not missing:
        return []
    listed = ", ".join(list(missing)[:4])
    return [f"the files lack {len(missing)} weights that the embedding does not depend on ({listed})"]
