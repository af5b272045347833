"""``py:package.module:factory`` or ``py:path/to/file.py:factory``: a torch module made by Python code of one's own.

``factory()`` takes no arguments and returns a `Source`, or ``(module, example_inputs)``, or a module with an attribute
``example_inputs``; examples are a tensor, a tuple or a dict of tensors. Inputs are named by ``forward``'s signature.
A module alone is enough where an option (``image``, ``audio`` or ``text``) says what it takes. Naming the factory is
what allows its code to run; it imports as a script does: from the current folder, or from that of its file.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploykit.errors import MissingError, SourceError
from deploykit.sources import Identity, Options, Source
from deploykit.sources._options import only

KIND = "module"
_PREFIX = "py:"


def matches(spec: str) -> bool:
    """``py:…``."""
    return spec.startswith(_PREFIX)


def identify(spec: str, options: Options) -> Identity:
    """No digest: a factory may load anything. What it does read is seen when it runs (`deploykit.pipeline.observe`)."""
    _split(spec)
    return Identity(KIND, spec, None, {"name": spec.removeprefix(_PREFIX)})


def open(spec: str, options: Options) -> Source:
    """Call the factory and wrap what it returns."""
    place, name = _split(spec)
    factory = find(place, name)
    try:
        made = factory()
    except Exception as error:
        raise SourceError(f"{spec} failed: {type(error).__name__}: {error}", hint="call it by itself first") from error
    if isinstance(made, Source):
        only(options, (), f"{name} returns a Source, which is taken as it is")
        return made
    return _wrap(spec, made, options)


def _wrap(spec: str, made: Any, options: Options) -> Source:
    from torch import nn

    from deploykit.sources._own_inputs import is_said, open_own
    from deploykit.sources._tensors import name_examples, open_tensors

    pair = isinstance(made, tuple) and len(made) == 2
    module, examples = made if pair else (made, getattr(made, "example_inputs", None))
    said = is_said(options)
    if not isinstance(module, nn.Module) or (examples is None and not said):
        raise SourceError(
            f"{spec} returned {type(made).__name__}",
            hint="return a Source, or (module, example_inputs) with a tensor, a tuple or a dict of tensors; "
            "for a module alone say what it takes: --image 224, --audio 16000 or --text TOKENIZER_FOLDER",
        )
    module = module.eval().requires_grad_(False)
    provenance = {"kind": KIND, "factory": spec.removeprefix(_PREFIX), "architecture": type(module).__name__}
    if said:
        return open_own(module.float(), options, type(module).__name__, provenance)
    return open_tensors(module, name_examples(module, examples), options, type(module).__name__, provenance)


def _split(spec: str) -> tuple[str, str]:
    place, _, name = spec.removeprefix(_PREFIX).rpartition(":")
    if not place or not name.isidentifier():
        hint = "py:package.module:factory or py:path/to/file.py:factory"
        raise SourceError(f"'{spec}' does not name a factory", hint=hint)
    return place, name


def find(place: str, name: str) -> Callable[..., Any]:
    """The function or class ``name`` of a module, or of a file ending in .py; `SourceError` when it has none."""
    module = _load_file(Path(place).expanduser()) if place.endswith(".py") else _import(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SourceError(f"{place} has no function '{name}'", hint=f"it has: {', '.join(sorted(offered)[:12])}")
    return factory  # type: ignore[no-any-return]


def _import(name: str) -> Any:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingError(
            f"the module {name} cannot be imported ({error.name} is not found)",
            hint="install it, or give the path of its file: py:path/to/file.py:factory",
        ) from error
    except Exception as error:
        raise SourceError(
            f"importing {name} failed: {type(error).__name__}: {error}", hint="import it alone"
        ) from error


def _load_file(path: Path) -> Any:
    """Run a file as a module of its own, with its folder on the import path as that of a script is."""
    if not path.is_file():
        raise SourceError(f"there is no file '{path}'", hint="check the path")
    _look_in(path.absolute().parent)
    name = f"deploykit_factory_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SourceError(f"running {path} failed: {type(error).__name__}: {error}", hint="run it alone") from error
    return module


def _look_in(folder: Path) -> None:
    """Let imports find what lies in a folder, first of all places, as Python does for a script."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
