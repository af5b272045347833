"""``timm:NAME``: an image encoder of the timm library, with its pretrained weights and its own preprocessing.

timm is imported only when a source names it. NAME is a model's name (``resnet50.a1_in1k``), ``hf-hub:org/name`` or
``local-dir:PATH``; a folder that timm has saved (config.json with an architecture of its own) may be named by its path
alone.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploykit.errors import MissingError, SourceError, nearest
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Identity, Options, Source, _folder
from deploykit.sources._options import only

KIND = "timm"
_PREFIX = "timm:"
_LOCAL = "local-dir:"
_GLOBAL_POOL = {"mean": "avg", "cls": "token", "max": "max"}
"""timm's words for the poolings; its models pool by themselves."""


def matches(spec: str) -> bool:
    """``timm:…``, or a folder of timm's own layout."""
    return spec.startswith(_PREFIX) or _is_timm_folder(Path(spec).expanduser())


def _is_timm_folder(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    ours = isinstance(config, dict) and "architecture" in config and "model_type" not in config
    return ours and ("pretrained_cfg" in config or "num_features" in config)


def identify(spec: str, options: Options) -> Identity:
    """No digest: the weights come through timm's own cache, and are not known before they are loaded."""
    if not _installed():
        raise MissingError(f"'{spec}' needs timm, which is not installed", hint="pip install timm torchvision")
    name = spec.removeprefix(_PREFIX) if spec.startswith(_PREFIX) else f"{_LOCAL}{Path(spec).expanduser()}"
    if name.startswith(_LOCAL):
        folder = _folder.require_folder(name.removeprefix(_LOCAL))
        _folder.read_table(folder / "config.json")
        facts = {**_folder.folder_facts(folder), "model": f"{_LOCAL}{folder}"}
        return _folder.identity(KIND, folder, _folder.deciding_files(folder), options, facts)
    return Identity(KIND, spec, None, {"name": name, "model": name})


def open(spec: str, options: Options) -> Source:
    """Create the model without its classifier; its pooled features are the embedding."""
    facts = identify(spec, options).facts
    name, made_of = str(facts["name"]), str(facts["model"])
    try:
        import timm
    except ImportError as error:
        hint = "timm needs a torchvision that fits this torch"
        raise MissingError(f"timm cannot be imported: {error}", hint=hint) from error
    from deploykit.sources._assemble import Parts, assemble
    from deploykit.sources._encoders import Head, ImageEncoder, OnePositional, only_tensor, stages
    from deploykit.sources._image import pixels

    only(options, ("pooling", "normalize", "dim"), f"{spec} is an image encoder of timm")
    model = _create(timm, made_of, options)
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
    if not name.startswith(("hf-hub:", _LOCAL)) and not timm.is_model(name):
        raise SourceError(f"timm {timm.__version__} has no model '{name}'", hint=_nearest(name, timm.list_models()))
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


def _nearest(name: str, known: list[str]) -> str:
    """The few names that come closest: timm has more than a thousand."""
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
    return f"the nearest are {', '.join(close)}" if close else "timm.list_models() gives their names"


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
        crop_rounding="even",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    image.check(options)
    # Through JSON, so that the card in memory equals the card that a bundle gives back.
    return {"kind": "image", **json.loads(json.dumps(asdict(options)))}
