"""The budget of a gate: what is given, and the default for whatever is not."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from deploykit.budget import TERMS, Budget
from deploykit.errors import RecipeError, nearest

#: What holds where nothing else is said. Sizes and memory must grow by more than 1 MiB as well to count.
DEFAULT = "standard drift<=+20% p50<=+3% size<=+2% memory<=+2%"
# One question asked in another term: whoever limits that has answered it.
_SAME = {"p99": "p50"}


def limits(given: str | os.PathLike[str] | Budget | None) -> Budget:
    """The budget in ``given``: text, a profile's name, or a TOML file with ``[budget] limits = "…"``.

    Terms that it does not limit get the limits of `DEFAULT`; p99 stands for p50 too. Throughput does so for batches
    alone, see `deploykit.gate.timing.metrics`. `RecipeError` says what cannot be read.
    """
    default = Budget.parse(DEFAULT)
    if given is None:
        return default
    wanted = given if isinstance(given, Budget) else Budget.parse(_text(given))
    said = {limit.term for limit in wanted.limits}
    said |= {_SAME[term] for term in said if term in _SAME}
    # A profile says how far from the baseline, and leaves open how much further from fp32.
    open_too = "drift" not in spelled(given)
    rest = [
        limit
        for limit in default.limits
        if limit.term not in said or (open_too and limit.relative and limit.term == "drift")
    ]
    return Budget((*wanted.limits, *rest))


def spelled(given: str | os.PathLike[str] | Budget | None) -> frozenset[str]:
    """The terms that somebody limited by name, and not through a profile or the default."""
    if given is None:
        return frozenset()
    if isinstance(given, Budget):
        return frozenset(limit.term for limit in given.limits)
    text = _text(given)
    return frozenset(term for term in TERMS if re.search(rf"(?<![\w-]){term}\s*[<>=≤≥]", text))


def beyond_sameness(budget: Budget) -> Budget:
    """The limits that a candidate with the baseline's bits may miss: absolute ones, and gains."""
    return Budget(
        tuple(
            limit
            for limit in budget.limits
            if not (limit.holds(0.0) if limit.relative else limit.term in ("drift", "p1", "task"))
        )
    )


def _text(given: str | os.PathLike[str]) -> str:
    text = os.fspath(given)
    return _from_file(Path(text)) if _names_a_file(text) else text


def _names_a_file(text: str) -> bool:
    return text.endswith(".toml") or Path(text).is_file()


def _from_file(path: Path) -> str:
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"there is no budget file '{path}'", hint="give a file, a profile or limits") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"the budget file '{path}' cannot be read: {error}", hint=_WRITE) from error
    section = data.get("budget")
    if not isinstance(section, dict) or not isinstance(section.get("limits"), str):
        raise RecipeError(f"'{path}' has no budget.limits", hint=_WRITE)
    for key in section:
        if key != "limits":
            raise RecipeError(f"'{path}' has the unknown key budget.{key}", hint=nearest(key, ["limits"]))
    return str(section["limits"])


_WRITE = 'write [budget] and below it limits = "standard p50<=+3%"'
