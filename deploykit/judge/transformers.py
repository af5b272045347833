"""transformers as judge: its Auto classes for model, tokenizer and processor; pooling is written out in torch."""

from __future__ import annotations

import importlib.util
import inspect
import wave
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.judge import Choices, Library, Raw, flat

if TYPE_CHECKING:
    from torch import Tensor

NAME = "transformers"
_UNBOUNDED = 10**6  # transformers writes 1e30 for "no maximum"
_TOWERS = {"text": "get_text_features", "vision": "get_image_features", "audio": "get_audio_features"}
_PROJECTED = ("text_embeds", "image_embeds", "audio_embeds")
"""What a tower that was saved by itself gives: its vector in the common space."""
_SOUND_PACKAGES = ("soundfile", "soxr")
_SIGLIP_LENGTH = 64  # the zero-shot pipeline pads every text of SigLIP to it, as SigLIP was trained


def open(location: str, choices: Choices) -> Library:
    """Load the folder with the class that the library offers for it."""
    said: list[str] = []
    model = _load(location, choices, said)
    reader = {"text": _texts, "image": _images, "audio": _sounds}[choices.modality](location, choices, model, said)
    module, method = _part(model, choices)
    for name, value in (("dim", choices.dim), ("normalize", choices.normalize)):
        said += [f"{name} {value}"] if value is not None else []
    return _Encoder(module, method, reader, choices, tuple(said))


class _Reader:
    """What the library's tokenizer or processor makes of one input.

    ``decode`` gives what a file holds, ``prepare`` the tensors of that, ``call`` says both in words.
    """

    def __init__(self, call: str, decode: Callable[[Raw], Any], prepare: Callable[[Any], Mapping[str, Any]]) -> None:
        self.call, self.decode, self.prepare = call, decode, prepare

    def __call__(self, raw: Raw) -> dict[str, Any]:
        return dict(self.prepare(self.decode(raw)))


class _Encoder:
    """See `Library`."""

    name = NAME

    def __init__(
        self, module: Any, method: str, reader: _Reader, choices: Choices, overridden: tuple[str, ...]
    ) -> None:
        import transformers

        self._module, self._method, self._reader, self._choices = module, method, reader, choices
        self._takes = frozenset(inspect.signature(getattr(module, method)).parameters)
        self.version = str(transformers.__version__)
        named = type(module).__name__ + ("" if method == "forward" else f".{method}")
        pooled = "" if method != "forward" else f", {choices.pooling}"
        self.call = f"{reader.call}, {named}{pooled}"
        self.overridden = overridden
        self.prompts: Mapping[str, str] = dict(choices.prompts)

    def encode(self, raw: Raw) -> np.ndarray:
        from torch.nn.functional import normalize

        inputs = self._reader(raw)
        vector = self._vector(self._run(inputs), inputs.get("attention_mask"))
        vector = vector[:, : self._choices.dim]
        return flat(normalize(vector, dim=-1) if self._choices.normalize else vector)

    def decoded(self, raw: Raw) -> np.ndarray | None:
        return None if self._choices.modality == "text" else np.asarray(self._reader.decode(raw))

    def tensors(self, raw: Raw) -> dict[str, np.ndarray]:
        return {name: np.asarray(found) for name, found in self._reader(raw).items() if hasattr(found, "shape")}

    def hidden(self, raw: Raw) -> np.ndarray | None:
        state = getattr(self._run(self._reader(raw)), "last_hidden_state", None)
        return None if state is None else np.asarray(state.float())

    def _run(self, inputs: Mapping[str, Any]) -> Any:
        import torch

        with torch.inference_mode():
            return getattr(self._module, self._method)(**{k: v for k, v in inputs.items() if k in self._takes})

    def _vector(self, output: Any, mask: Tensor | None) -> Tensor:
        """[1, dim] of a model's output."""
        pooled: Tensor
        if hasattr(output, "shape"):
            return output  # type: ignore[no-any-return]
        if self._method != "forward" or self._choices.pooling == "pooler":
            projected = (getattr(output, name, None) for name in _PROJECTED)
            vector = next((vector for vector in projected if vector is not None), None)
            pooled = output.pooler_output if vector is None else vector
            return pooled.flatten(1)
        state = getattr(output, "last_hidden_state", None)
        state = output.feature_maps[-1] if state is None else state
        tokens = state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
        # The mask of a waveform counts samples, not frames; one sound alone has no padding.
        kept = tokens[0, mask[0] > 0] if mask is not None and mask.shape[1] == tokens.shape[1] else tokens[0]
        return _pool(kept, self._choices.pooling)


def _pool(tokens: Tensor, words: str) -> Tensor:
    """One text's tokens [count, width] to [1, dim]; ``words`` are joined by ``+``."""
    import torch

    count = tokens.shape[0]
    ranks = torch.arange(1, count + 1, dtype=tokens.dtype)[:, None]
    ways: dict[str, Callable[[], Tensor]] = {
        "mean": lambda: tokens.mean(dim=0),
        "cls": lambda: tokens[0],
        "last": lambda: tokens[-1],
        "max": lambda: tokens.amax(dim=0),
        "mean_sqrt_len": lambda: tokens.sum(dim=0) / count**0.5,
        "weighted_mean": lambda: (tokens * ranks).sum(dim=0) / ranks.sum(),
    }
    return torch.cat([ways[word]() for word in words.split("+")])[None]


def _load(location: str, choices: Choices, said: list[str]) -> Any:
    """The model in float32: `AutoModel`, or the class that its config names if that is a tower with its projection,
    which `AutoModel` drops, or one that `AutoModel` does not know.
    """
    import torch
    import transformers

    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": choices.trust_remote_code}
    config = transformers.AutoConfig.from_pretrained(location, **common)
    if getattr(config, "mask_ratio", None):
        config.mask_ratio = 0.0  # an embedding sees the whole input
        said.append("mask_ratio 0.0")
    name = next(iter(config.architectures or []), "")
    named = getattr(transformers, name, None)
    alone = named is not None and name.endswith("WithProjection")
    offered = [named] if alone else [transformers.AutoModel, *([named] if named is not None else [])]

    def load(kind: Any) -> Any:
        return kind.from_pretrained(location, config=config, dtype=torch.float32, **common).eval()

    for kind in offered[:-1]:
        try:
            return load(kind)
        except ValueError:  # AutoModel does not know the configuration
            continue
    return load(offered[-1])


def _part(model: Any, choices: Choices) -> tuple[Any, str]:
    """What is called: a tower, the encoder of a model of two halves, or the model."""
    if choices.tower is not None:
        return model, _TOWERS[choices.tower]
    takes = inspect.signature(model.forward).parameters
    if hasattr(model, "get_encoder") and (model.config.is_encoder_decoder or "decoder_input_ids" in takes):
        return model.get_encoder(), "forward"
    return model, "forward"


def _texts(location: str, choices: Choices, model: Any, said: list[str]) -> _Reader:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        location, local_files_only=True, trust_remote_code=choices.trust_remote_code
    )
    how: dict[str, Any] = {"truncation": True}
    if "siglip" in model.config.model_type:
        how |= {"padding": "max_length", "max_length": _SIGLIP_LENGTH}
    if choices.max_length is not None:
        how["max_length"] = choices.max_length
        said.append(f"max_length {choices.max_length}")
    elif "max_length" not in how and tokenizer.model_max_length > _UNBOUNDED:
        how["max_length"] = choices.longest
        said.append(f"max_length {choices.longest}, as the folder names none")
    if choices.fixed_length is not None:
        how |= {"padding": "max_length", "max_length": choices.fixed_length}
        said.append(f"fixed_length {choices.fixed_length}")
    if choices.prompts:
        said.append("prompts")

    def decode(raw: Raw) -> str:
        return (choices.prompts[raw.prompt] if raw.prompt is not None else "") + str(raw.value)

    given = "".join(f", {key}={value!r}" for key, value in how.items())
    call = f"AutoTokenizer(text{given})"
    return _Reader(call, decode, lambda text: tokenizer(text, return_tensors="pt", **how))


def _images(location: str, choices: Choices, model: Any, said: list[str]) -> _Reader:
    """Pictures by the library's `load_image`; the processor's Pillow form, the one that needs nothing else."""
    from transformers import AutoImageProcessor
    from transformers.image_utils import load_image

    processor = AutoImageProcessor.from_pretrained(
        location, local_files_only=True, trust_remote_code=choices.trust_remote_code, backend="pil"
    )
    call = f"load_image(path), {type(processor).__name__}"
    return _Reader(call, lambda raw: load_image(str(raw.value)), lambda image: processor(image, return_tensors="pt"))


def _sounds(location: str, choices: Choices, model: Any, said: list[str]) -> _Reader:
    """Sounds by the library's `load_audio` where the packages that it needs are here, else by the standard library."""
    from transformers import AutoFeatureExtractor
    from transformers.audio_utils import load_audio

    extractor = AutoFeatureExtractor.from_pretrained(
        location, local_files_only=True, trust_remote_code=choices.trust_remote_code
    )
    rate = int(extractor.sampling_rate)

    def prepare(samples: np.ndarray) -> Mapping[str, Any]:
        found: Mapping[str, Any] = extractor(samples, sampling_rate=rate, return_tensors="pt")
        return found

    able = all(importlib.util.find_spec(name) for name in _SOUND_PACKAGES)
    call = f"{'load_audio(path)' if able else 'wave.open(path)'}, {type(extractor).__name__}"

    def decode(raw: Raw) -> np.ndarray:
        return np.asarray(load_audio(str(raw.value), sampling_rate=rate)) if able else _read_wav(str(raw.value))

    return _Reader(call, decode, prepare)


def _read_wav(path: str) -> np.ndarray:
    """The mean of the channels of a file of 16 bits, float32 in -1…1."""
    with wave.open(path, "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    mono: np.ndarray = (samples.astype(np.float32) / 32768).mean(axis=1)
    return mono
