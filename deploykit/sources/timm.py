"""``timm:NAME``: an image encoder of the timm library, with its pretrained weights and its own preprocessing.

timm is imported only when a source names it. NAME is a model's name (``resnet50.a1_in1k``) or ``hf-hub:org/name``.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from deploykit.errors import MissingError, SourceError, nearest
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Identity, Options, Source
from deploykit.sources._options import only

KIND = "timm"
_PREFIX = "timm:"
_GLOBAL_POOL = {"mean": "avg", "cls": "token", "max": "max"}
"""timm's words for the poolings; its models pool by themselves."""


def matches(spec: str) -> bool:
    """``timm:…``."""
    return spec.startswith(_PREFIX)


def identify(spec: str, options: Options) -> Identity:
    """No digest: the weights come through timm's own cache, and are not known before they are loaded."""
    if not _installed():
        raise MissingError(f"'{spec}' needs timm, which is not installed", hint="pip install timm torchvision")
    return Identity(KIND, spec, None, {"name": spec.removeprefix(_PREFIX)})


def open(spec: str, options: Options) -> Source:
    """Create the model without its classifier; its pooled features are the embedding."""
    name = str(identify(spec, options).facts["name"])
    try:
        import timm
    except ImportError as error:
        hint = "timm needs a torchvision that fits this torch"
        raise MissingError(f"timm cannot be imported: {error}", hint=hint) from error
    from deploykit.sources._assemble import Parts, assemble
    from deploykit.sources._encoders import Head, ImageEncoder, OnePositional, only_tensor, stages
    from deploykit.sources._image import pixels

    only(options, ("pooling", "normalize", "dim"), f"{spec} is an image encoder of timm")
    model = _create(timm, name, options)
    config = timm.data.resolve_model_data_config(model)
    taken = TensorSpec("pixel_values", "float32", ("batch", *map(int, config["input_size"])))
    head = Head([], stages(options, bool(options.normalize)))
    return assemble(
        Parts(
            name=name,
            modality="image",
            module=ImageEncoder(OnePositional(model), "forward", only_tensor, head).eval(),
            inputs=(taken,),
            make_inputs=lambda batch, sizes, seed: {taken.name: pixels(taken, batch, sizes, seed)},
            sizes={},
            preprocess=preprocess(name, config),
            pooling=options.pooling or "pooler",
            normalized=bool(options.normalize),
            provenance={"kind": KIND, "name": name, "architecture": type(model).__name__, "timm": timm.__version__},
        )
    )


def _installed() -> bool:
    return importlib.util.find_spec("timm") is not None


def _create(timm: Any, name: str, options: Options) -> Any:
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        raise SourceError(f"timm {timm.__version__} has no model '{name}'", hint=nearest(name, timm.list_models()))
    changes = {}
    if options.pooling not in (None, "pooler"):
        if options.pooling not in _GLOBAL_POOL:
            raise SourceError(
                f"timm has no pooling '{options.pooling}'", hint=nearest(str(options.pooling), list(_GLOBAL_POOL))
            )
        changes["global_pool"] = _GLOBAL_POOL[str(options.pooling)]
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **changes).eval().requires_grad_(False)
    except (OSError, ConnectionError) as error:
        hint = "run once with a network, so that they lie in the cache"
        raise MissingError(f"the weights of {name} cannot be fetched: {error}", hint=hint) from error
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise SourceError(f"timm cannot make {name}: {error}", hint="another pooling, or another name") from error


def preprocess(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """``card.preprocess`` for timm's data config, as its evaluation transform does it."""
    from deploykit.runtime.preprocess import image

    count, height, width = map(int, config["input_size"])
    mode, percent = config.get("crop_mode", "center"), float(config.get("crop_pct") or 1.0)
    tall, wide = math.floor(height / percent), math.floor(width / percent)
    if mode == "squash":
        resize = {"height": tall, "width": wide}
    elif mode == "center" and tall == wide:
        resize = {"shortest_edge": tall}
    else:
        hint = "export it as tensors with py:, and preprocess images yourself"
        raise SourceError(f"{name} is evaluated with crop mode '{mode}' at {height} x {width}", hint=hint)
    options = image.Options(
        decoding="timm",
        channels="gray" if count == 1 else "rgb",
        resize=resize,
        resample=config["interpolation"],
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    image.check(options)
    # Through JSON, so that the card in memory equals the card that a bundle gives back.
    return {"kind": "image", **json.loads(json.dumps(asdict(options)))}
