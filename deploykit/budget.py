"""A budget: what a variant may lose and what it must gain, in one line of text.

::

    drift<=0.01 p50<=4ms size<=60MB p50<=+3%
    standard size<=30MB

A limit is TERM, operator, number, unit. An absolute limit holds for the figure itself; a relative one, signed and in
per cent, for its change against a baseline. A profile's name stands for its limits; what comes later overrides what
came before, an absolute limit the absolute one of the same term and a relative one the relative one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from deploykit.errors import RecipeError, nearest

Operator = Literal["<=", ">="]

_TIMES_MS = {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_STEPS = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B"))
_RATES = {"/s": 1.0, "": 1.0}
_PLAIN = {"": 1.0}


@dataclass(frozen=True)
class Term:
    """What can be limited: ``example`` is a limit as one would write it, ``units`` the factors to the unit in which
    figures are given, ``lowest`` and ``highest`` what an absolute limit may be.
    """

    operator: Operator
    meaning: str
    example: str
    units: Mapping[str, float]
    relative: bool
    lowest: float = 0.0
    highest: float = math.inf


#: Every term. Figures are in: ms (p50, p99), items a second (throughput), bytes (size, memory), points of 100 (task).
TERMS: Mapping[str, Term] = {
    "drift": Term("<=", "1 - mean cosine to the reference", "drift<=0.01", _PLAIN, True, 0.0, 2.0),
    "p1": Term(">=", "1st percentile of the cosine to the reference", "p1>=0.975", _PLAIN, False, -1.0, 1.0),
    "task": Term("<=", "points of 100 lost on the labelled task", "task<=0.5", _PLAIN, False, 0.0, 100.0),
    "p50": Term("<=", "median time of a call", "p50<=4ms", _TIMES_MS, True),
    "p99": Term("<=", "99th percentile of the time of a call", "p99<=9ms", _TIMES_MS, True),
    "throughput": Term(">=", "items a second", "throughput>=500", _RATES, True),
    "size": Term("<=", "bytes on disk", "size<=60MB", _BYTES, True),
    "memory": Term("<=", "peak memory", "memory<=500MB", _BYTES, True),
}

#: Limits by name. All figures in the reasons are all-MiniLM-L6-v2 on STS-B, cosines to fp32.
#:
#: - strict: another arithmetic, the same encoder. bf16 passes (drift 0.00001), no int8 does; an index that was built
#:   with the reference needs no second thought.
#: - standard: what careful int8 reaches (drift 0.004 to 0.008, p1 0.976 to 0.979) and careless int8 does not (one
#:   scale per tensor: 0.040 and 0.884; static ranges without smoothing: 0.07 to 0.20 and 0.59 to 0.87).
#: - edge: for devices on which only int8 fits. Small convolutional and transformer encoders lose up to 1.2 points in
#:   published int8 results; careless int8 still fails.
PROFILES: Mapping[str, str] = {
    "strict": "drift<=0.001 p1>=0.995 task<=0.1",
    "standard": "drift<=0.01 p1>=0.975 task<=0.5",
    "edge": "drift<=0.03 p1>=0.93 task<=1.5",
}

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_OPERATOR = r"<=|>=|==|!=|≤|≥|<|>|="
_WORD = re.compile(rf"(?P<term>[^\s<>=!≤≥]*)(?P<operator>{_OPERATOR})(?P<value>\S*)")
_VALUE = re.compile(rf"(?P<number>{_NUMBER})(?P<unit>\S*)")


@dataclass(frozen=True)
class Limit:
    """One limit. ``value`` is in the unit of the term's figures; of a ``relative`` one it is a fraction (+3 % is
    0.03). ``text`` is how it is written.
    """

    term: str
    value: float
    relative: bool
    text: str

    @property
    def operator(self) -> Operator:
        """``<=`` or ``>=``: the term decides it."""
        return TERMS[self.term].operator

    def holds(self, value: float) -> bool:
        """Is ``value`` (the figure, or its change as a fraction) inside the limit? NaN never is."""
        return value <= self.value if self.operator == "<=" else value >= self.value


@dataclass(frozen=True)
class Budget:
    """Limits, all of which must hold. ``str()`` of a budget is text that `parse` reads back."""

    limits: tuple[Limit, ...]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read limits and names of profiles, separated by blanks or commas; `RecipeError` says what is wrong."""
        found: dict[tuple[str, bool], Limit] = {}
        for word in _words(text):
            for limit in _profile(word) if word in PROFILES else [_limit(word)]:
                found[limit.term, limit.relative] = limit
        if not found:
            raise RecipeError("the budget is empty", hint=f"write limits such as {_example()}")
        return cls(tuple(found.values()))

    def only(self, terms: Iterable[str]) -> Budget:
        """The limits on ``terms`` alone; there may be none."""
        wanted = set(terms)
        return Budget(tuple(limit for limit in self.limits if limit.term in wanted))

    @property
    def absolute(self) -> Budget:
        """The limits on figures themselves, without those on their change."""
        return Budget(tuple(limit for limit in self.limits if not limit.relative))

    def __str__(self) -> str:
        return " ".join(limit.text for limit in self.limits)


@dataclass(frozen=True)
class Row:
    """One limit held against what was measured, in the unit of the term's figures. ``ok`` None: it could not be
    judged, and the sentence says why.
    """

    term: str
    limit_text: str
    measured: float | None
    ok: bool | None
    sentence: str


def judge(budget: Budget, figures: Mapping[str, float], baseline: Mapping[str, float] | None = None) -> tuple[Row, ...]:
    """A row for each limit. ``figures`` and ``baseline`` map terms to values in the units of `TERMS`."""
    return tuple(_row(limit, figures.get(limit.term), (baseline or {}).get(limit.term)) for limit in budget.limits)


def figure_text(term: str, value: float) -> str:
    """``value``, in the unit of the term's figures, for people: ``4.2 ms``, ``23.1 MB``."""
    units = TERMS[term].units
    if units is _TIMES_MS:
        return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
    if units is _BYTES:
        factor, unit = next((step for step in _STEPS if value >= step[0]), _STEPS[-1])
        return f"{value / factor:.{0 if factor == 1 else 1}f} {unit}"
    if units is _RATES:
        return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"
    return f"{value:.2f}" if term == "task" else f"{value:.5f}"


def _row(limit: Limit, measured: float | None, base: float | None) -> Row:
    name, shown = limit.term, limit.text
    if measured is None:
        return Row(name, shown, None, None, f"{name} was not measured, so {shown} could not be judged.")
    said = figure_text(name, measured)
    if not limit.relative:
        ok = limit.holds(measured)
        return Row(name, shown, measured, ok, f"{name} is {said}, {'inside' if ok else 'outside'} {shown}.")
    if base is None or not base > 0:
        why = "the baseline has no such figure" if base is None else f"the baseline's is {base:g}"
        return Row(name, shown, measured, None, f"{name} is {said}, and {why}, so {shown} could not be judged.")
    change = measured / base - 1
    ok = limit.holds(change)
    against = f"{said} against {figure_text(name, base)} ({100 * change:+.1f} %)"
    return Row(name, shown, measured, ok, f"{name} is {against}, {'inside' if ok else 'outside'} {shown}.")


def _words(text: str) -> list[str]:
    """The limits and profiles, blanks around operators and before units taken away."""
    text = re.sub(rf"\s*({_OPERATOR})\s*", r"\1", text.replace(",", " ").replace(";", " "))
    units = "|".join(sorted({re.escape(u) for t in TERMS.values() for u in (*t.units, "%") if u}, key=len)[::-1])
    return re.sub(rf"(?<=[\d.])\s+({units})(?=\s|$)", r"\1", text, flags=re.IGNORECASE).split()


def _profile(name: str) -> list[Limit]:
    return [_limit(word) for word in PROFILES[name].split()]


def _limit(word: str) -> Limit:
    match = _WORD.fullmatch(word)
    name = match["term"] if match else word
    if name not in TERMS:
        raise _unknown(name, word)
    term = TERMS[name]
    if match is None:
        raise RecipeError(f"'{word}' in the budget has no limit", hint=f"write {term.example}")
    operator = {"≤": "<=", "≥": ">="}.get(match["operator"], match["operator"])
    if operator != term.operator:
        fact = f"'{word}' in the budget: {name} ({term.meaning}) is limited with {term.operator}, not {operator}"
        raise RecipeError(fact, hint=f"write {term.example}")
    value = _VALUE.fullmatch(match["value"])
    if value is None or not math.isfinite(float(value["number"])):
        fact = f"'{match['value']}' is no number" if match["value"] else "the number is missing"
        raise RecipeError(f"'{word}' in the budget: {fact}", hint=f"write {term.example}")
    text = f"{name}{operator}{match['value']}"
    if value["unit"] == "%":
        return Limit(name, _change(word, name, term, value["number"]), True, text)
    return Limit(name, _absolute(word, name, term, value["number"], value["unit"]), False, text)


def _change(word: str, name: str, term: Term, number: str) -> float:
    if not term.relative:
        fact = f"'{word}' in the budget: {name} is no percentage but {term.meaning}"
        raise RecipeError(fact, hint=f"write {term.example}")
    if number[0] not in "+-":
        hint = (
            f"{name}{term.operator}+{number}% is {number} % above the baseline, {name}{term.operator}-{number}% below"
        )
        raise RecipeError(f"'{word}' in the budget: a change needs its sign", hint=hint)
    if float(number) <= -100:
        fact = f"'{word}' in the budget: nothing can be {abs(float(number)):g} % below the baseline"
        raise RecipeError(fact, hint=f"give more than -100%, such as {name}{term.operator}-3%")
    return float(number) / 100


def _absolute(word: str, name: str, term: Term, number: str, unit: str) -> float:
    known = [u for u in term.units if u and u.isascii()]
    if unit.lower() not in term.units:
        fact = f"has the unit '{unit}'" if unit else "has no unit"
        hint = f"{name} is in {', '.join(known)}: {term.example}" if known else f"{name} has no unit: {term.example}"
        raise RecipeError(f"'{word}' in the budget {fact}", hint=_in_capitals(hint) if term.units is _BYTES else hint)
    value = float(number) * term.units[unit.lower()]
    if not term.lowest <= value <= term.highest:
        bound = f"at least {term.lowest:g}" if value < term.lowest else f"at most {term.highest:g}"
        raise RecipeError(f"'{word}' in the budget: {name} is {term.meaning}, {bound}", hint=f"write {term.example}")
    return value


def _in_capitals(hint: str) -> str:
    return re.sub(r"\b([kmg]?)(i?)b\b", lambda m: f"{m[1].upper()}{m[2]}B", hint)


def _unknown(name: str, word: str) -> RecipeError:
    fact = f"'{word}' in the budget names no term" if not name else f"the budget has no term or profile '{name}'"
    close = nearest(name, [*TERMS, *PROFILES]) if name else ""
    hint = f"{close} " if close.startswith("did you mean") else ""
    return RecipeError(fact, hint=f"{hint}terms: {', '.join(TERMS)}; profiles: {', '.join(PROFILES)}")


def _example() -> str:
    return f"'{TERMS['drift'].example} {TERMS['size'].example}', or a profile: {', '.join(PROFILES)}"
