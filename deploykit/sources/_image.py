"""Image encoders: which of a model's outputs is the embedding, and pixels to prove it with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Options, _folder
from deploykit.sources._assemble import Parts, depends_on
from deploykit.sources._checkpoint import Checkpoint, first_line, provenance
from deploykit.sources._processors import image_preprocess

if TYPE_CHECKING:
    import torch

_NAMES_OF_CLS = ("cls_token", "class_embedding", "class_token")


def parts(folder: Path, checkpoint: Checkpoint, options: Options) -> Parts:
    """An image encoder with the preprocessing of its processor files."""
    from deploykit.sources._encoders import Head, ImageEncoder, feature_map, last_hidden_state, pooler_output, stages

    processing = image_preprocess(folder)
    spec = processing.inputs[0]
    pooling, reason, rank = decide_pooling(checkpoint, options, pixels(spec, 2, _first_sizes(processing), 0))
    by_itself = pooling == "pooler"
    head = Head([] if by_itself else [pooling], stages(options, bool(options.normalize)))
    pick = pooler_output if by_itself else feature_map if rank == 4 else last_hidden_state
    ordered = _patches(checkpoint, pixels(spec, 2, _first_sizes(processing), 0))
    module = ImageEncoder(checkpoint.body, checkpoint.method, pick, head, ordered=ordered).eval()
    return Parts(
        name=_folder.folder_facts(folder)["name"],
        modality="image",
        module=module,
        inputs=processing.inputs,
        make_inputs=lambda batch, sizes, seed: {spec.name: pixels(spec, batch, sizes, seed, processing.preprocess)},
        sizes=_sizes(module, spec, _first_sizes(processing), checkpoint.architecture),
        preprocess=processing.preprocess,
        pooling=pooling,
        normalized=bool(options.normalize),
        provenance=provenance("transformers", folder, checkpoint, reason),
        license=_folder.license_file(folder),
    )


def decide_pooling(checkpoint: Checkpoint, options: Options, inputs: torch.Tensor) -> tuple[str, str, int]:
    """(pooling, why, rank of the last hidden state): as asked; else the model's own pooler if its weights are there.

    Without one: the CLS token where the model has one, else the mean over tokens, frames or the feature map.
    """
    import torch

    from deploykit.sources._encoders import own_embedding, pooler_output

    if checkpoint.method != "forward":
        return "pooler", "the tower pools by itself", 2

    def call() -> Any:
        with torch.inference_mode():
            return checkpoint.body(**{checkpoint.input_name: inputs})

    try:
        output = call()
    except Exception as error:
        hint = "config.json and the processor's files do not belong together"
        name, shape = checkpoint.architecture, list(inputs.shape)
        raise SourceError(f"{name} fails on {shape}: {first_line(error)}", hint=hint) from error
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        hidden = (getattr(output, "feature_maps", None) or (None,))[-1]
    rank = 2 if hidden is None else int(hidden.ndim)
    if options.pooling is not None:
        return options.pooling, "asked for", rank
    if own_embedding(output) is not None:
        if not depends_on(list(checkpoint.missing.values()), lambda: pooler_output(call())):
            return "pooler", "the model's own pooled output", rank
        untrained = "its pooler's weights are missing"
    else:
        untrained = "it has no pooler"
    if any(name.split(".")[-1] in _NAMES_OF_CLS for name, _ in checkpoint.body.named_parameters()):
        return "cls", f"the CLS token, because {untrained}", rank
    return "mean", f"the mean, because {untrained} and it has no CLS token", rank


def _patches(checkpoint: Checkpoint, inputs: torch.Tensor) -> int | None:
    """How many patches a model has that takes noise to draw their order from; None for any other."""
    import torch

    if not checkpoint.accepts("noise"):
        return None
    drawn: list[int] = []
    rand = torch.rand

    def counted(*size: Any, **kwargs: Any) -> torch.Tensor:
        made = rand(*size, **kwargs)
        drawn.append(int(made.shape[-1]))
        return made

    torch.rand = counted
    try:
        with torch.inference_mode():
            getattr(checkpoint.body, checkpoint.method)(pixel_values=inputs)
    finally:
        torch.rand = rand
    return drawn[0] if drawn else None


def pixels(
    spec: TensorSpec, batch: int, sizes: Mapping[str, int], seed: int, preprocess: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """Smooth random images, about normal: white noise alone would average out in every pooling.

    With ``preprocess`` (the card's) no value is one that it cannot make of a picture: int8 has no range for others.
    """
    import torch

    channels, height, width = (sizes.get(a, 0) if isinstance(a, str) else a for a in spec.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    made = smooth + 0.3 * torch.randn(batch, channels, height, width, generator=generator)
    return made if preprocess is None else made.clamp(*_bounds(preprocess))


def _bounds(preprocess: Mapping[str, Any]) -> tuple[float, float]:
    """What a black and a white picture become, in the channel where that is farthest out."""
    ends = []
    for byte in (0.0, 255.0):
        value = byte * preprocess["rescale"] - preprocess["offset"]
        ends += [(value - mean) / std for mean, std in zip(preprocess["mean"], preprocess["std"], strict=True)]
    return min(ends), max(ends)


def _first_sizes(processing: Any) -> dict[str, int]:
    """Sizes to begin with where the processor leaves height and width to the image."""
    edges = (processing.preprocess.get("resize") or {}).values()
    edge = min(edges, default=224)
    return {axis: edge for axis in processing.inputs[0].shape[2:] if isinstance(axis, str)}


def _sizes(module: Any, spec: TensorSpec, first: Mapping[str, int], name: str) -> dict[str, tuple[int, ...]]:
    """Sizes of the axes that are dynamic, each tried out; `SourceError` when the model takes one size alone."""
    if not first:
        return {}
    import torch

    offered: dict[str, tuple[int, ...]] = {axis: (edge, edge + edge // 2) for axis, edge in first.items()}
    for values in itertools.product(*offered.values()):
        try:
            with torch.inference_mode():
                module(pixels(spec, 1, dict(zip(offered, values, strict=True)), 0))
        except Exception as error:
            raise SourceError(
                f"the processor of {name} gives any shape, and the model fails on {values}: {first_line(error)}",
                hint="give the processor a fixed size (height and width) or a centre crop",
            ) from error
    return offered
