"""Sound to ``input_values`` [samples] or to log-mel features: decode, mix to mono, resample, normalise, pad.

What is matched: ``Wav2Vec2FeatureExtractor`` called on one waveform at a time, and ``WhisperFeatureExtractor``,
``ASTFeatureExtractor`` and ``ClapFeatureExtractor`` (without fusion); files as ``load_audio`` reads them with its
``soundfile`` backend: mixed to mono, then resampled. Its other backends resample with other filters. Long sounds are
cut where those classes cut them: Whisper at 30 s, AST at its number of frames; CLAP, which cuts at random, is given the
beginning. A raw waveform is never cut.

A batch of raw waveforms of an encoder without ``attention_mask`` is padded as its authors say, with ``padding_value``.
Such an encoder hears the padding, so a waveform's own embedding comes from batches of equal lengths.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.runtime.errors import BundleError, InputError
from deploykit.runtime.manifest import Card, TensorSpec, from_json
from deploykit.runtime.preprocess import Item
from deploykit.runtime.preprocess.logmel import LogMel, log_mel
from deploykit.runtime.preprocess.parallel import map_threads
from deploykit.runtime.preprocess.resample import resample
from deploykit.runtime.preprocess.wav import MAX_SECONDS, read_audio

MASK = "attention_mask"
MAX_CHANNELS = 8
_VARIANCE_FLOOR = 1e-7
_FULL_SCALE = {"uint8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}


@dataclass(frozen=True)
class Options:
    """``card.preprocess`` of an audio encoder; without ``mel`` the encoder takes the waveform itself.

    ``sampling_rate`` is in Hz. ``normalize`` brings a waveform to zero mean and unit variance, and silence to zeros.
    """

    sampling_rate: int
    normalize: bool = False
    padding_value: float = 0.0
    mel: LogMel | None = None


class Preprocessor:
    """Paths, bytes, arrays at the model's rate and pairs (array, rate in Hz) to batches of waveforms or features.

    Arrays are float in -1…1, uint8, int16 or int32, [samples] or with a second axis of up to 8 channels: their mean is
    taken.
    """

    def __init__(self, options: Options, inputs: Sequence[TensorSpec], bounds: dict[str, tuple[int, int]]) -> None:
        self.options = options
        self._name = next(spec.name for spec in inputs if spec.name != MASK)
        self._mask_dtype = next((np.dtype(spec.dtype) for spec in inputs if spec.name == MASK), None)
        self._bounds = bounds.get("samples")

    @classmethod
    def open(cls, card: Card, root: Path) -> Preprocessor:
        """Read ``card.preprocess``; `BundleError` names a wrong key. No file below ``root`` is needed."""
        data = {key: value for key, value in card.preprocess.items() if key != "kind"}
        options = from_json(Options, data, "card.preprocess")
        if options.sampling_rate < 1:
            raise BundleError(f"card.preprocess.sampling_rate is {options.sampling_rate}", hint="it is in Hz: 16000")
        return cls(options, card.inputs, card.limits.axes)

    def items(self, inputs: Sequence[Any], *, kind: str | None = None) -> list[Item]:
        """One item per sound, cost in samples; `InputError` names the first sound that cannot be used."""
        if kind is not None:
            raise InputError(f"kind={kind!r} was asked for, and an audio encoder has no prompts", hint="leave kind out")
        return map_threads(self._item, inputs)

    def collate(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        """Stack features, or pad waveforms to the longest and add the mask where the encoder takes one."""
        arrays = [item.tensors[self._name] for item in items]
        if self.options.mel is not None:
            return {self._name: np.stack(arrays)}
        lengths = np.array([array.size for array in arrays])
        batch = np.full((len(arrays), lengths.max()), self.options.padding_value, np.float32)
        for row, array in zip(batch, arrays, strict=True):
            row[: array.size] = array
        feeds = {self._name: batch}
        if self._mask_dtype is not None:
            feeds[MASK] = (np.arange(batch.shape[1]) < lengths[:, None]).astype(self._mask_dtype)
        return feeds

    def _item(self, sound: Any, index: int) -> Item:
        where = describe(sound, index)
        samples = load(sound, where, self.options.sampling_rate)
        if self.options.mel is not None:
            self._check_length(samples.size, (self.options.mel.shortest, samples.size), where)
            features = log_mel(samples, self.options.sampling_rate, self.options.mel)
            return Item({self._name: features}, self.options.mel.frames * self.options.mel.hop)
        self._check_length(samples.size, self._bounds, where)
        if self.options.normalize:
            samples = (samples - samples.mean()) / np.sqrt(samples.var() + _VARIANCE_FLOOR)
        return Item({self._name: samples}, samples.size)

    def _check_length(self, count: int, bounds: tuple[int, int] | None, where: str) -> None:
        low, high = bounds or (1, count)
        if not low <= count <= high:
            rate = self.options.sampling_rate
            taken = f"{low / rate:.3g} s or more" if count < low else f"{high / rate:.5g} s at most"
            raise InputError(
                f"{where} lasts {count / rate:.5g} s, and this encoder takes {taken}", hint="cut or join sounds"
            )


def describe(sound: Any, index: int) -> str:
    """How messages name a sound: its path where it has one."""
    return f"audio '{os.fspath(sound)}'" if isinstance(sound, (str, os.PathLike)) else f"audio {index}"


def load(sound: Any, where: str, rate: int) -> np.ndarray:
    """Mono float32 [samples] at ``rate`` Hz; `InputError` for what is no sound, is damaged, empty, not finite, or
    longer than an hour.
    """
    if isinstance(sound, (str, os.PathLike)):
        sound = _read(Path(sound), where)
    if isinstance(sound, (bytes, bytearray, memoryview)):
        samples, source_rate = read_audio(bytes(sound), where)
        channel_axis: int | None = 1
    else:
        array, source_rate = sound, rate
        if isinstance(sound, tuple) and len(sound) == 2 and np.ndim(sound[0]) > 0:
            array, source_rate = sound[0], _rate(sound[1], where)
        samples = _floats(array, where)
        channel_axis = _channel_axis(samples, where)
    if samples.size == 0:
        raise InputError(f"{where} holds no samples", hint="leave empty recordings out")
    seconds = (samples.size if channel_axis is None else samples.shape[1 - channel_axis]) / source_rate
    if seconds > MAX_SECONDS:
        raise InputError(f"{where} lasts {seconds:,.0f} s", hint=f"cut it into parts of {MAX_SECONDS:,} s at most")
    if not np.isfinite(samples).all():
        raise InputError(f"{where} holds NaN or infinite samples", hint="the recording or its conversion is broken")
    mono = samples if channel_axis is None else samples.mean(axis=channel_axis, dtype=np.float32)
    return np.ascontiguousarray(resample(mono, source_rate, rate))


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{where} does not exist", hint="check the path") from error
    except OSError as error:
        raise InputError(
            f"{where} cannot be read: {error.strerror}", hint="pass the path of a readable file"
        ) from error


def _rate(value: Any, where: str) -> int:
    if not isinstance(value, (int, np.integer)) or not 1 <= value <= 1_000_000:
        raise InputError(
            f"{where} has the sampling rate {value!r}", hint="pass (array, rate) with the rate in whole Hz"
        )
    return int(value)


def _floats(sound: Any, where: str) -> np.ndarray:
    """Samples as float32 in -1…1, of any shape."""
    hint = "pass a path, bytes, an array of float, int16 or int32 samples, or (array, rate)"
    try:
        array = np.asarray(sound)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} is no array of samples: {error}", hint=hint) from error
    if array.dtype.kind == "f" or array.size == 0:
        return array.astype(np.float32, copy=False)
    if array.dtype.name not in _FULL_SCALE:
        raise InputError(f"{where} is a {type(sound).__name__} of {array.dtype}", hint=hint)
    zero = np.float32(128 if array.dtype == np.uint8 else 0)
    return (array.astype(np.float32) - zero) / np.float32(_FULL_SCALE[array.dtype.name])


def _channel_axis(samples: np.ndarray, where: str) -> int | None:
    """The axis that holds channels: the short one of two, None where there is one axis alone."""
    if samples.ndim == 1:
        return None
    if samples.ndim != 2 or not min(samples.shape) <= MAX_CHANNELS < max(samples.shape):
        message = f"{where} has the shape {list(samples.shape)}"
        raise InputError(message, hint=f"pass [samples], or up to {MAX_CHANNELS} channels as a second axis")
    return int(np.argmin(samples.shape))
