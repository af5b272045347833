"""A gate's result for a terminal; whatever comes from a bundle is cleaned of what would steer one."""

from __future__ import annotations

import re
import textwrap

from deploykit.gate.result import AaResult, Result

# GitHub and GitLab read commands out of what a job prints.
_COMMAND = re.compile(r"^(\s*):(?=:)|(#)(?=#\[)")


def plain(text: str) -> str:
    """``text`` without what steers a terminal or turns the direction of writing; lines stay lines."""
    kept = (c if c.isprintable() or c == "\n" else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "".join(kept)


def render(result: Result, width: int = 100) -> str:
    """The verdict first, then every row, then what it was found on; at most ``width`` columns where words allow it."""
    lines = [plain(f"{result.status}: {result.candidate.name} against {result.baseline.name}").replace("\n", " "), ""]
    for row in result.rows:
        lines += _wrapped(f"{row.status:<12}  {row.name}: {row.sentence}", width)
        if row.look and row.status != "PASS":
            lines += _wrapped(f"{'':14}→ {row.look}", width)
    lines.append("")
    for text in (*result.skipped, *result.notes):
        lines += _wrapped(text, width, 0)
    facts = f"budget {result.budget}; {result.data}; hw {result.hardware['id']}; seed {result.seed}"
    lines += _wrapped(f"{facts}; {result.seconds:.0f} s{'; ' + result.noise if result.noise else ''}", width, 0)
    return "\n".join(lines) + "\n"


def render_aa(result: AaResult, width: int = 100) -> str:
    """The rate of false alarms, and every run."""
    lines = [*_wrapped(result.sentence, width, 0), ""]
    for index, run in enumerate(result.comparisons):
        for c in run:
            figures = f"{100 * c.change:+.1f} % ±{100 * c.half_width:.1f} % over {c.pairs} pairs ({c.stage})"
            lines.append(plain(f"{index + 1:>3}  {c.status:<12}  {c.metric}: {figures}"))
    lines += ["", *_wrapped(f"budget {result.budget}; {result.seconds:.0f} s; {result.noise}", width, 0)]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, width: int, indent: int = 14) -> list[str]:
    lines = textwrap.wrap(
        plain(text),
        max(width, 40),
        subsequent_indent=" " * indent,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [_COMMAND.sub(r"\1\2 ", line) for line in lines]
