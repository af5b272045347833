"""The contracts of targets, precisions, sources and objectives as checks, for those who write one in their package.

::

    from deploykit import testing

    def test_my_precision_keeps_the_contract():
        testing.check_precision("ternary")

Names are those of the registry: the package has to be installed, with its entry point. Each check raises
`AssertionError` with the sentence of what is missing. The built-in ones are held to the same checks.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from deploykit import registry


def check_target(name: str) -> None:
    """A target compiles, audits, has precisions that exist, and an engine of its name."""
    from deploykit.runtime import engines

    module, what = registry.module("targets", name), f"the target '{name}'"
    _options(module, what)
    _parameters(module, "compile", ["model", "card", "precision", "options", "out"], what)
    _parameters(module, "audit", ["artifact", "card", "settings"], what)
    unknown = sorted(set(module.PRECISIONS) - set(registry.names("precisions")))
    _expect(not unknown, f"{what} has PRECISIONS that do not exist: {', '.join(unknown)}")
    _expect(name in engines.names(), f"{what} has no engine: name one in the group deploykit.engines")


def check_precision(name: str) -> None:
    """A precision lowers, says how far it may be off, and is offered by a target or names one itself."""
    from deploykit.graph.prove import Tolerance

    module, what = registry.module("precisions", name), f"the precision '{name}'"
    _options(module, what)
    _parameters(module, "lower", ["task", "options", "out"], what)
    _expect(isinstance(module.TOLERANCE, Tolerance), f"{what}: TOLERANCE is no Tolerance")
    _expect(0.9 <= module.TOLERANCE.cosine < 1, f"{what}: TOLERANCE.cosine is outside 0.9 to 1")
    _expect(isinstance(module.CALIBRATED, bool), f"{what}: CALIBRATED is no bool")
    targets = registry.names("targets")
    unknown = sorted(set(module.FORMS) - {*targets, "tensorrt"})
    _expect(not unknown, f"{what} has FORMS for targets that do not exist: {', '.join(unknown)}")
    offered = [target for target in targets if registry.compiled_as(target, name)]
    # The graphs that TensorRT takes are made and checked before there is an engine to run them.
    _expect(
        bool(offered) or "tensorrt" in module.FORMS,
        f"{what} is offered by no target: give it TARGETS, or add it to the PRECISIONS of one",
    )
    if hasattr(module, "resolve"):
        resolved = module.resolve(module.Options())
        _expect(isinstance(resolved, module.Options), f"{what}: resolve returns no Options")
        _expect(module.resolve(resolved) == resolved, f"{what}: resolve changes what it has resolved")


def check_source(name: str) -> None:
    """A source matches, identifies and opens a spec, and says what it is."""
    module, what = registry.module("sources", name), f"the source '{name}'"
    _parameters(module, "matches", ["spec"], what)
    _parameters(module, "identify", ["spec", "options"], what)
    _parameters(module, "open", ["spec", "options"], what)
    _expect(bool(module.__doc__), f"{what} has no docstring: `deploykit list sources` shows it")


def check_objective(name: str) -> None:
    """An objective asks for views and is built around an encoder."""
    module, what = registry.module("objectives", name), f"the objective '{name}'"
    _options(module, what)
    _parameters(module, "views", ["options"], what)
    _parameters(module, "build", ["space", "encoder", "options"], what)
    views = module.views(module.Options())
    _expect(views == 0 or views >= 2, f"{what} asks for {views} views, expected 0, or 2 or more")


#: The check of each kind.
CHECKS: Mapping[str, Callable[[str], None]] = {
    "targets": check_target,
    "precisions": check_precision,
    "sources": check_source,
    "objectives": check_objective,
}


def _options(module: ModuleType, what: str) -> None:
    options: Any = getattr(module, "Options", None)
    _expect(dataclasses.is_dataclass(options), f"{what} has no dataclass Options")
    _expect(options.__dataclass_params__.frozen, f"{what}: Options is not frozen")
    needed = [f.name for f in dataclasses.fields(options) if _has_no_default(f)]
    _expect(not needed, f"{what}: Options has no default for {', '.join(needed)}")
    _expect(bool(options.__doc__), f"{what}: Options has no docstring")


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _parameters(module: ModuleType, function: str, expected: list[str], what: str) -> None:
    found = getattr(module, function, None)
    _expect(callable(found), f"{what} has no function {function}")
    assert found is not None
    got = list(inspect.signature(found).parameters)
    _expect(got == expected, f"{what}: {function} takes ({', '.join(got)}), expected ({', '.join(expected)})")


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)
