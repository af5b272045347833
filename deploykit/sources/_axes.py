"""Sizes of dynamic axes: those asked for (``axes = {"length" = "1:2048"}``), else those that are found by trying.

What was tried bounds what a bundle takes, so sizes grow as far as a proof of them stays quick.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from deploykit.errors import SourceError, nearest

Works = Callable[[Mapping[str, int]], str]

_FIRST = (16, 32, 64, 128, 224, 48, 7, 2, 1, 256, 320, 512, 1024)
_SMALL = (1, 2, 3, 5, 7, 8, 16, 32, 64, 128)
_ODD = 7
# A proof runs some dozen cases on each engine.
_QUICK_S = 0.25
ELEMENTS = 2**20
"""Of the largest input whose size nobody asked for."""
ELEMENTS_OF_ID = 64
"""What an integer counts: behind a token there is a vector."""
_MANY_AXES = 2


def asked(axes: Mapping[str, str] | None, names: Collection[str], aliases: Mapping[str, str]) -> dict[str, range]:
    """The sizes asked for, by deploykit's name of the axis; ``aliases`` are the model's own names.

    Raises `SourceError` for an axis that is not dynamic, and for what is no ``LOW:HIGH`` or ``N``.
    """
    found = {}
    for key, text in (axes or {}).items():
        axis = key if key in names else aliases.get(key, key)
        if axis not in names:
            hint = nearest(key, sorted({*names, *aliases})) if names else "the model has no dynamic axis but the batch"
            raise SourceError(f"axes names '{key}', which is no dynamic axis", hint=hint)
        low, mark, high = text.partition(":")
        try:
            ends = int(low), int(high if mark else low)
        except ValueError:
            ends = (0, 0)
        if not 1 <= ends[0] <= ends[1]:
            raise SourceError(f"the axis '{key}' is '{text}'", hint="write --axis length=1:2048, or --axis length=128")
        found[axis] = range(ends[0], ends[1] + 1)
    return found


def find(
    names: Sequence[str],
    given: Mapping[str, range],
    works: Works,
    base: Mapping[str, int] | None = None,
    widths: Sequence[int] = (),
) -> dict[str, tuple[int, ...]]:
    """Sizes to prove for each axis, smallest first; a single one where no other works.

    ``works`` tries sizes of all axes, and says why they do not work, else nothing; ``base`` are sizes that should work;
    ``widths`` are sizes that one of the axes may be fixed at in truth. Raises `SourceError` if no size works, or one
    that was asked for does not.
    """
    start = _start(names, given, works, base, widths)
    found = {axis: _of(axis, start, given.get(axis), works, few=len(names) >= _MANY_AXES) for axis in names}
    ends = {axis: sizes[-1] for axis, sizes in found.items()}
    while works(ends):  # each works alone, all together may not
        free = [axis for axis in names if axis not in given and ends[axis] > start[axis]]
        if not free:
            break
        longest = max(free, key=lambda axis: ends[axis] / start[axis])
        ends[longest] = max(start[longest], ends[longest] // 2)
    return {axis: tuple(sorted({n for n in sizes if n <= ends[axis]} | {ends[axis]})) for axis, sizes in found.items()}


def grow(start: int, works: Callable[[int], bool], most: int = ELEMENTS) -> int:
    """The largest of start, twice that, … that works, up to ``most`` and to a time that a proof can bear."""
    size = start
    while 2 * size <= most:
        began = time.perf_counter()
        if not works(2 * size):
            break
        size *= 2
        if time.perf_counter() - began > _QUICK_S:
            break
    return size


def _start(
    names: Sequence[str],
    given: Mapping[str, range],
    works: Works,
    base: Mapping[str, int] | None,
    widths: Sequence[int],
) -> dict[str, int]:
    """Sizes of all axes that work together."""
    known = {axis: sizes[len(sizes) // 2] for axis, sizes in given.items()}
    trials = [{**base, **known}] if base else []
    trials += [{**dict.fromkeys(names, n), **known} for n in _FIRST]
    free = [axis for axis in names if axis not in known]
    for axis in reversed(free):
        trials += [{**dict.fromkeys(names, n), **known, axis: width} for width in widths for n in _FIRST[:6]]
    why = ""
    for sizes in trials:
        failed = works(sizes)
        if not failed:
            return sizes
        why = why or failed
    tried = ", ".join(map(str, _FIRST))
    raise SourceError(
        f"no size of {', '.join(names)} works, {tried} were tried: {why}",
        hint="say which do: --axis NAME=N or NAME=LOW:HIGH, or give an input as it should be (--example FILE.npz)",
    )


def _of(axis: str, start: Mapping[str, int], wanted: range | None, works: Works, *, few: bool) -> tuple[int, ...]:
    def alone(size: int) -> bool:
        return not works({**start, axis: size})

    middle = start[axis]
    if wanted is not None:
        for size in (wanted[0], wanted[-1]):
            if not alone(size):
                raise SourceError(
                    f"the model fails at {axis} {size}, which was asked for", hint="ask for sizes that it takes"
                )
        inner = [] if few else [n for n in (_ODD, 4 * _ODD) if n in wanted and alone(n)]
        return tuple(sorted({wanted[0], *inner, middle, wanted[-1]}))
    low = next((n for n in _SMALL if n < middle and alone(n)), middle)
    high = grow(middle, alone)
    inner = [] if few else [n for n in (_ODD, middle // 2 + 1) if low < n < high and alone(n)]
    return tuple(sorted({low, *inner, middle, high}))
