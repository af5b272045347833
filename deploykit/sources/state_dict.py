"""Weights alone (``.safetensors``, or tensors of ``torch.save``) with the class that they belong to.

``architecture`` names the class, ``package.module:Class`` or ``path/to/file.py:Class``; ``init`` holds its arguments.
Naming it is what allows its code to run. What the module takes is said by ``image``, ``audio`` or ``text``, else by its
own ``example_inputs``. A file of pickled objects other than tensors is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import SourceError
from deploykit.sources import Identity, Options, Source, _folder, _formats

if TYPE_CHECKING:
    import torch
    from torch import nn

KIND = "state-dict"
_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_INDEX = ".safetensors.index.json"
# Where training loops keep the weights among other things, likeliest first.
_PLACES = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
# What wrappers put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.")
_COUNTERS = "num_batches_tracked"


def matches(spec: str) -> bool:
    """A file of weights; a folder only if a class is named for it, which `deploykit.sources` sees."""
    path = Path(spec).expanduser()
    if not path.is_file():
        return False
    return path.name.endswith((".safetensors", _INDEX)) or _formats.zip_kind(path) == "weights"


def identify(spec: str, options: Options) -> Identity:
    """No digest: the code of the class decides too, and what it reads is seen when it runs."""
    files = _files(spec)
    if options.architecture is None:
        raise SourceError(
            f"'{spec}' holds weights alone, which do not name their model",
            hint="name the class: --model package.module:Class (with --init '{…}' for its arguments), or give the "
            "folder with its config.json",
        )
    for path in files:
        _folder.check_whole(path)
    return Identity(KIND, str(Path(spec).expanduser()), None, {"name": _name(spec)})


def open(spec: str, options: Options) -> Source:
    """Make the module, load the weights into it, and wrap it as the options say what it takes."""
    from deploykit.sources._own_inputs import is_said, open_own
    from deploykit.sources._tensors import name_examples, open_tensors

    name = str(identify(spec, options).facts["name"])
    files = _files(spec)
    module = _made(str(options.architecture), options.init or {})
    notes = _fit(module, _read(files), files[0])
    module = module.float().eval().requires_grad_(False)
    provenance = {
        "kind": KIND,
        "name": name,
        "architecture": str(options.architecture),
        "init": dict(options.init or {}),
        "weights_sha256": _folder.digest_of(files),
        "notes": notes,
    }
    options = replace(options, architecture=None, init=None)
    examples = getattr(module, "example_inputs", None)
    if examples is None or is_said(options):
        return open_own(module, options, name, provenance)
    return open_tensors(module, name_examples(module, examples), options, name, provenance)


def _name(spec: str) -> str:
    return Path(spec).expanduser().name.removesuffix(_INDEX).removesuffix(".safetensors").rsplit(".", 1)[0]


def _files(spec: str) -> tuple[Path, ...]:
    path = Path(spec).expanduser()
    if path.is_dir():
        alone = [p for p in sorted(path.iterdir()) if p.suffix in (".safetensors", *_PICKLED)]
        return (alone[0],) if len(alone) == 1 else _folder.weight_files(path)
    if not path.is_file():
        raise SourceError(f"there is no file '{spec}'", hint="check the path")
    return _folder.shards(path) if path.name.endswith(_INDEX) else (path,)


def _made(architecture: str, init: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    from deploykit.sources.module import find

    place, _, name = architecture.rpartition(":")
    if not place or not name.isidentifier():
        hint = "package.module:Class, or path/to/file.py:Class"
        raise SourceError(f"'{architecture}' does not name a class", hint=hint)
    try:
        made = find(place, name)(**init)
    except SourceError:
        raise
    except Exception as error:
        hint = "give its arguments as JSON: --init '{\"depth\": 4}'"
        raise SourceError(f"{architecture} cannot be made: {type(error).__name__}: {error}", hint=hint) from error
    if not isinstance(made, nn.Module):
        raise SourceError(f"{architecture} gives a {type(made).__name__}", hint="name a class of torch modules")
    return made


def _read(files: tuple[Path, ...]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in files:
        found |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    return found


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="fetch the file again") from error


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path} holds more than tensors (a whole module, or settings of a training), which is refused",
            hint="load it where you trust it, and save model.state_dict(), best as safetensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path} cannot be read: {error}", hint="fetch the file again") from error
    return _tensors(loaded, path)


def _tensors(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    """The weights in what a training loop saved: alone, or under one of the usual names."""
    import torch

    def is_weights(value: Any) -> bool:
        return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())

    if is_weights(loaded):
        return dict(loaded)
    held = [key for key, value in loaded.items() if is_weights(value)] if isinstance(loaded, Mapping) else []
    chosen = next((key for key in _PLACES if key in held), held[0] if len(held) == 1 else None)
    if chosen is None:
        names = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise SourceError(f"{path} holds no weights by name ({names[:200]})", hint="save model.state_dict() alone")
    return dict(loaded[chosen])


def _fit(module: nn.Module, given: dict[str, torch.Tensor], path: Path) -> list[str]:
    """Load weights that fit the module in every name and shape; notes for the user.

    A weight that is tied to a loaded one may be missing. Parts of which the class has nothing, such as a classifier
    that it leaves out, may be more than it takes; a part that it has, and that the file has more of, may not.
    """
    wanted = module.state_dict()
    given = _without_prefix(given, wanted)
    tied = {tensor.data_ptr(): key for key, tensor in wanted.items() if key in given}
    missing = [
        k for k, t in wanted.items() if k not in given and t.data_ptr() not in tied and not k.endswith(_COUNTERS)
    ]
    parts = {key.partition(".")[0] for key in wanted}
    more = [key for key in given if key not in wanted]
    wrong = [key for key in more if key.partition(".")[0] in parts]
    shapes = [
        f"{key} is {list(given[key].shape)}, expected {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in given and given[key].shape != tensor.shape
    ]
    faults = [
        *([f"{len(missing)} weights are missing ({_some(missing)})"] if missing else []),
        *([f"{len(wrong)} belong nowhere ({_some(wrong)})"] if wrong else []),
        *shapes[:2],
    ]
    if faults:
        hint = "another class, or other arguments (--init): it must be made as it was trained"
        raise SourceError(f"{path} does not fit {type(module).__name__}: {'; '.join(faults)}", hint=hint)
    module.load_state_dict({key: tensor for key, tensor in given.items() if key in wanted}, strict=False)
    left = sorted({key.partition(".")[0] for key in more})
    return [f"the class has no {', '.join(left)}, whose weights are left out"] if left else []


def _without_prefix(given: dict[str, torch.Tensor], wanted: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Without what wrappers (data parallel, torch.compile, a training module) put before every name."""
    stripped = True
    while stripped and not any(key in wanted for key in given):
        stripped = False
        for prefix in _PREFIXES:
            inner = {key.removeprefix(prefix): tensor for key, tensor in given.items() if key.startswith(prefix)}
            if inner and (len(inner) == len(given) or any(key in wanted for key in inner)):
                others = {key: tensor for key, tensor in given.items() if not key.startswith(prefix)}
                given, stripped = {**others, **inner}, True
                break
    return given


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
