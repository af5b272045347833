"""Audio encoders: raw waveforms of any length, or spectrograms of a fixed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import SourceError
from deploykit.runtime.manifest import TensorSpec, from_json
from deploykit.runtime.preprocess import audio
from deploykit.sources import Options, _folder
from deploykit.sources._assemble import Parts
from deploykit.sources._checkpoint import Checkpoint, first_line, provenance
from deploykit.sources._image import decide_pooling
from deploykit.sources._processors import Preprocessing, audio_preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn

LONGEST_SECONDS = 30
"""Longest waveform that is proven unless ``max_length`` says otherwise; transformers' audio models set no bound."""

_MASK = "attention_mask"


@dataclass(frozen=True)
class AudioInput:
    """The input tensors of an audio encoder; ``shortest`` is the fewest samples that it can take."""

    specs: tuple[TensorSpec, ...]
    shortest: int

    def make(self, batch: int, sizes: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
        """Noise, louder and softer; with a mask every row but the first is shorter and padded with zeros."""
        import torch

        spec = self.specs[0]
        shape = [batch, *(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape[1:])]
        generator = torch.Generator().manual_seed(seed)
        loudness = 0.5 + torch.rand(shape, generator=generator)
        tensors = {spec.name: loudness * torch.randn(shape, generator=generator)}
        if len(self.specs) > 1:
            length = shape[1]
            counts = [max(self.shortest, length - (row * length) // batch) for row in range(batch)]
            mask = torch.arange(length).unsqueeze(0) < torch.tensor(counts).unsqueeze(1)
            tensors = {spec.name: tensors[spec.name] * mask, _MASK: mask.to(torch.int64)}
        return tensors


@dataclass(frozen=True)
class SpectrogramInput:
    """The input of an encoder of spectrograms of one size, which ``preprocess`` (the card's) makes of sounds."""

    spec: TensorSpec
    preprocess: Mapping[str, Any]

    def make(self, batch: int, sizes: Mapping[str, int], seed: int) -> dict[str, torch.Tensor]:
        """Spectrograms of noise: short and long, dark and bright, loud and soft.

        White noise in the place of a spectrogram has values that no sound has, and int8 has no range for those.
        """
        import torch

        options = from_json(audio.Options, {k: v for k, v in self.preprocess.items() if k != "kind"}, "preprocess")
        assert options.mel is not None
        reader = audio.Preprocessor(options, (self.spec,), {})
        rng = np.random.default_rng(seed)
        longest = options.mel.frames * options.mel.hop
        sounds = [_noise(rng, int(longest * rng.uniform(0.2, 1.0))) for _ in range(batch)]
        return {name: torch.from_numpy(array) for name, array in reader.collate(reader.items(sounds)).items()}


def _noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Noise in -1…1 through a moving average of a random width, which swells and fades; float32 [samples]."""
    width = int(rng.integers(1, 24))
    sound = np.convolve(rng.standard_normal(samples + width - 1), np.ones(width) / width, mode="valid")
    swelling = 0.55 + 0.45 * np.sin(rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(3, 30), samples))
    loudest = np.abs(sound * swelling).max()
    return np.asarray(10 ** rng.uniform(-2, -0.1) / loudest * sound * swelling, dtype=np.float32)


def parts(folder: Path, checkpoint: Checkpoint, options: Options) -> Parts:
    """An audio encoder with the preprocessing of its feature extractor."""
    from deploykit.sources import _encoders

    processing = audio_preprocess(folder)
    specs = _used(processing, checkpoint)
    rate = int(processing.preprocess["sampling_rate"])
    probe = _made(processing, specs[:1], 1).make(2, {"samples": rate}, 0)[specs[0].name]
    pooling, reason, rank = decide_pooling(checkpoint, options, probe)
    by_itself = pooling == "pooler"
    head = _encoders.Head([] if by_itself else [pooling], _encoders.stages(options, bool(options.normalize)))
    pick = _encoders.pooler_output if by_itself else _encoders.last_hidden_state
    if rank == 4 and not by_itself:
        pick = _encoders.feature_map
    encoder = _encoders.WaveformEncoder if specs[0].name == "input_values" else _encoders.FeatureEncoder
    module = encoder(checkpoint.body, checkpoint.method, pick, head).eval()
    given, sizes = _lengths(module, processing, specs, options)
    found = Parts(
        name=_folder.folder_facts(folder)["name"],
        modality="audio",
        module=module,
        inputs=specs,
        make_inputs=given.make,
        sizes=sizes,
        preprocess=processing.preprocess,
        pooling=pooling,
        normalized=bool(options.normalize),
        provenance=provenance("transformers", folder, checkpoint, reason),
        license=_folder.license_file(folder),
    )
    if len(specs) == 1 or not isinstance(given, AudioInput):
        return found
    alone = AudioInput(specs[:1], given.shortest)
    return replace(found, unpadded=lambda: (alone.specs, alone.make))


def _used(processing: Preprocessing, checkpoint: Checkpoint) -> tuple[TensorSpec, ...]:
    """The tensors that the model takes; a mask only where frames can be told from it."""
    specs = processing.inputs
    takes, made = checkpoint.input_name, specs[0].name
    if takes != made:
        raise SourceError(
            f"{checkpoint.architecture} takes '{takes}', and its feature extractor makes '{made}'",
            hint="the processor's file belongs to another model",
        )
    if len(specs) == 1 or not checkpoint.accepts(_MASK):
        return specs[:1]
    if not hasattr(checkpoint.body, "_get_feat_extract_output_lengths"):
        hint = "set return_attention_mask to false in preprocessor_config.json, and encode equal lengths together"
        raise SourceError(f"{checkpoint.architecture} does not say how many frames a mask leaves", hint=hint)
    return specs


def _made(processing: Preprocessing, specs: tuple[TensorSpec, ...], shortest: int) -> AudioInput | SpectrogramInput:
    if "samples" in specs[0].shape:
        return AudioInput(specs, shortest)
    return SpectrogramInput(specs[0], processing.preprocess)


def _lengths(
    module: nn.Module, processing: Preprocessing, specs: tuple[TensorSpec, ...], options: Options
) -> tuple[AudioInput | SpectrogramInput, dict[str, tuple[int, ...]]]:
    """The input with its shortest length, found by trying, and the lengths that a proof covers."""
    if "samples" not in specs[0].shape:
        if options.max_length is not None:
            raise SourceError("this encoder takes spectrograms of one size", hint="leave max_length out")
        return _made(processing, specs, 1), {}
    return waveform_lengths(module, specs, int(processing.preprocess["sampling_rate"]), options.max_length)


def waveform_lengths(
    module: nn.Module, specs: tuple[TensorSpec, ...], rate: int, longest: int | None
) -> tuple[AudioInput, dict[str, tuple[int, ...]]]:
    """The input of an encoder of raw waveforms, and the lengths in samples that a proof covers, up to ``longest``."""
    longest = longest or LONGEST_SECONDS * rate
    shortest = _shortest(module, specs[:1], longest)
    wanted = {shortest, 3 * shortest + 1, rate // 4 + 3, rate, longest}
    return AudioInput(specs, shortest), {"samples": tuple(sorted(n for n in wanted if shortest <= n <= longest))}


def _shortest(module: nn.Module, specs: tuple[TensorSpec, ...], longest: int) -> int:
    """The fewest samples that give a finite embedding, by bisection."""
    top = min(longest, 16_000)
    failure = _failure(module, specs, top)
    if failure is not None:
        raise SourceError(f"the encoder fails on {top} samples: {failure}", hint="raise max_length, in samples")
    low, high = 0, top
    while high - low > 1:
        trial = (low + high) // 2
        if _failure(module, specs, trial) is None:
            high = trial
        else:
            low = trial
    return high


def _failure(module: Any, specs: tuple[TensorSpec, ...], samples: int) -> str | None:
    import torch

    try:
        with torch.inference_mode():
            vectors = module(**AudioInput(specs, 1).make(1, {"samples": samples}, 0))
    except Exception as error:
        return first_line(error)
    return None if torch.isfinite(vectors).all() else "it gives NaN or infinity"
