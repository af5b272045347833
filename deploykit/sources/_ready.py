"""Encoders whose preprocessing is the caller's own: the inputs are the model's tensors, as its config describes them.

The way for processors that bundles cannot carry (video clips, filter banks of other kinds). Images and clips keep the
one size that the config names, only the batch varies; the length of a sequence of features varies where the model
takes other lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.sources import Options, Source, _folder
from deploykit.sources._checkpoint import Checkpoint, first_line, provenance
from deploykit.sources._image import decide_pooling

if TYPE_CHECKING:
    import torch

_CHANNELS = ("num_channels", "in_chans", "in_channels")
_EDGES = ("image_size", "crop_size", "img_size", "input_size")
_FRAMES = ("num_frames", "frames_per_clip")
_BINS = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "input_dim")
_STEPS = 50
_SAMPLES = 16_000


def open_ready(folder: Path, checkpoint: Checkpoint, options: Options) -> Source:
    """A source of modality tensor, pooled as the model of any modality would be.

    Raises `SourceError` when the config does not say what shape the input has.
    """
    from deploykit.sources._encoders import Picked, feature_map, last_hidden_state, pooler_output
    from deploykit.sources._tensors import open_tensors

    example = _example(checkpoint)
    pooling, reason, rank = decide_pooling(checkpoint, options, example)
    by_itself = pooling == "pooler"
    pick = pooler_output if by_itself else feature_map if rank == 4 else last_hidden_state
    facts = provenance("transformers", folder, checkpoint, reason)
    shape = ", ".join(map(str, example.shape[1:]))
    note = f"preprocessing is left to the caller, as asked: '{checkpoint.input_name}' is [batch, {shape}]"
    return open_tensors(
        Picked(checkpoint.body, pick).eval(),
        {checkpoint.input_name: example},
        replace(options, pooling="none" if by_itself else pooling),
        _folder.folder_facts(folder)["name"],
        {**facts, "notes": [*facts["notes"], note]},
        fixed=example.ndim > 3,
    )


def _example(checkpoint: Checkpoint) -> torch.Tensor:
    """Noise of the first shape, of those that the config allows for, on which the model runs."""
    import torch

    tried = []
    for shape in _shapes(checkpoint):
        example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        try:
            with torch.inference_mode():
                checkpoint.body(**{checkpoint.input_name: example})
        except Exception as error:
            tried.append(f"{list(shape)} ({first_line(error)})")
            continue
        return example
    listed = "; ".join(tried) or "its config names no size of its input"
    raise SourceError(
        f"the shape of '{checkpoint.input_name}' of {checkpoint.architecture} cannot be told: {listed}",
        hint="wrap the model in a Python factory that brings example inputs: py:package.module:factory",
    )


def _shapes(checkpoint: Checkpoint) -> Iterator[tuple[int, ...]]:
    """Shapes that the config speaks for, likeliest first."""
    name, config = checkpoint.input_name, checkpoint.config
    channels, frames = _number(config, _CHANNELS) or 3, _number(config, _FRAMES)
    if name.startswith("pixel_values"):
        edge = next((getattr(config, key) for key in _EDGES if getattr(config, key, None)), None)
        if edge is not None:
            height, width = edge[-2:] if isinstance(edge, (list, tuple)) else (edge, edge)
            if frames is not None:
                yield (2, frames, channels, height, width)
            yield (2, channels, height, width)
    elif name == "input_features":
        bins = _number(config, _BINS)
        if bins is not None:
            yield (2, _STEPS, bins)
            positions = _number(config, ("max_source_positions",)) or _STEPS
            yield (2, bins, 2 * positions)
    elif name == "input_values":
        yield (2, _SAMPLES)


def _number(config: Any, names: tuple[str, ...]) -> int | None:
    """The first of the config's entries of these names that is a whole number."""
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
