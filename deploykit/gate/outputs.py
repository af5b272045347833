"""What continuous integration reads: JUnit, Markdown for a step's summary, and workflow commands.

JUnit after the schema that Jenkins and GitLab read (github.com/windyroad/JUnit-Schema): a row is a test case, one that
cannot be told or was not measured is skipped. Annotations after docs.github.com, "Workflow commands".
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from deploykit.gate.result import AaResult, Result, Row, Unjudged
from deploykit.gate.text import plain as _plain
from deploykit.gate.text import render
from deploykit.output import write_text

#: GitHub cuts nothing: a longer summary is an error there.
SUMMARY_BYTES = 2**20
# Of Markdown what makes emphasis, code, links and pictures; an address becomes a link without any of it.
_MARKUP = re.compile(r"[\\`*_\[\]|~]")
_ADDRESS = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)
_MARKS = {"PASS": "✅ PASS", "FAIL": "❌ FAIL", "INCONCLUSIVE": "❔ INCONCLUSIVE", "NOT MEASURED": "➖ not measured"}


def junit(result: Result) -> str:
    """The rows as one test suite, its name the candidate's."""
    count = {status: sum(row.status == status for row in result.rows) for status in _MARKS}
    counts = {
        "tests": len(result.rows),
        "failures": count["FAIL"],
        "errors": 0,
        "skipped": count["INCONCLUSIVE"] + count["NOT MEASURED"],
    }
    told = {
        "verdict": result.status,
        "baseline": result.baseline.name,
        "baseline.digest": result.baseline.digest,
        "candidate.digest": result.candidate.digest,
        "budget": result.budget,
        "hardware": str(result.hardware["id"]),
        "seed": str(result.seed),
    }
    suite = _suite(result.candidate.name, counts, result.seconds, told)
    for row in result.rows:
        _add_case(suite, row, result)
    return _document(suite, render(result), "")


def junit_unjudged(failed: Unjudged) -> str:
    """One case that ends in an error, so that a test report is never empty."""
    told = {"verdict": "ERROR", "baseline": failed.baseline}
    suite = _suite(failed.candidate, {"tests": 1, "failures": 0, "errors": 1, "skipped": 0}, 0.0, told)
    case = ElementTree.SubElement(suite, "testcase", {"classname": _of(failed.candidate), "name": "gate", "time": "0"})
    attributes = {"type": _plain(failed.error), "message": _plain(failed.message)}
    text = _plain(failed.message + (f"\n{failed.hint}" if failed.hint else ""))
    ElementTree.SubElement(case, "error", attributes).text = text
    return _document(suite, "", text)


def markdown(result: Result) -> str:
    """A page for a step's summary: the verdict, the rows, what was compared on what; at most `SUMMARY_BYTES`."""
    lines = [f"## {_MARKS[result.status]}: {_code(result.candidate.name)} against {_code(result.baseline.name)}", ""]
    lines += ["| what | verdict | limit | |", "|---|---|---|---|"]
    for row in result.rows:
        look = f"<br>→ {_cell(row.look)}" if row.look and row.status != "PASS" else ""
        lines.append(f"| {_cell(row.name)} | {_MARKS[row.status]} | {_cell(row.limit)} | {_cell(row.sentence)}{look} |")
    lines += ["", *(f"- {_cell(text)}" for text in (*result.skipped, *result.notes))]
    lines += ["", f"Budget {_code(result.budget)}; {_cell(result.data)}; hw {_cell(str(result.hardware['id']))}"]
    lines += [f"({_cell(str(result.hardware['cpu']))}, {result.hardware['cores']} cores); seed {result.seed};"]
    lines += [f"{result.seconds:.0f} s. {_cell(result.noise)}", ""]
    lines += [f"Candidate {result.candidate.digest}, baseline {result.baseline.digest}."]
    return _cut("\n".join(lines) + "\n", SUMMARY_BYTES)


def markdown_unjudged(failed: Unjudged) -> str:
    """The page of a gate that could not run."""
    against = f" against {_code(failed.baseline)}" if failed.baseline else ""
    lines = [f"## ❗ ERROR: {_code(failed.candidate)}{against} could not be judged", "", _cell(failed.message)]
    lines += ["", f"→ {_cell(failed.hint)}"] if failed.hint else []
    return _cut("\n".join(lines) + "\n", SUMMARY_BYTES)


def aa_markdown(result: AaResult) -> str:
    """The A/A run as a page."""
    lines = [
        "## The gate's own noise",
        "",
        f"{_cell(result.sentence)}. Budget {_code(result.budget)}, {_cell(result.noise)}.",
        "",
    ]
    lines += ["| run | metric | verdict | change | half-width | pairs |", "|---|---|---|---|---|---|"]
    for index, run in enumerate(result.comparisons):
        for c in run:
            figures = f"{100 * c.change:+.1f} % | ±{100 * c.half_width:.1f} % | {c.pairs} ({c.stage})"
            lines.append(f"| {index + 1} | {_cell(c.metric)} | {_MARKS[c.status]} | {figures} |")
    return _cut("\n".join(lines) + "\n", SUMMARY_BYTES)


def annotation(result: Result) -> str:
    """One workflow command for a bundle that fails or cannot be judged; empty for one that passes."""
    if result.status == "PASS":
        return ""
    level = "error" if result.status == "FAIL" else "warning"
    told = [row for row in result.rows if row.status == result.status]
    text = "\n".join(row.sentence + (f" → {row.look}" if row.look else "") for row in told)
    return _command(level, f"deploykit gate: {result.status} {result.candidate.name}", text)


def annotation_unjudged(failed: Unjudged) -> str:
    """The workflow command for a gate that could not run."""
    text = failed.message + (f" → {failed.hint}" if failed.hint else "")
    return _command("error", f"deploykit gate: ERROR {failed.candidate}", text)


def write(text: str, path: Path, *, append: bool = False) -> None:
    """Write ``text`` in one rename, or add it to the end, as a step's summary wants it."""
    if not append:
        write_text(path, text)
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _command(level: str, title: str, text: str) -> str:
    return f"::{level} title={_escaped(title, property=True)}::{_escaped(text)}"


def _of(candidate: str) -> str:
    return _plain(f"deploykit.gate.{Path(candidate).name}")


def _suite(
    candidate: str, counts: Mapping[str, int], seconds: float, properties: Mapping[str, str]
) -> ElementTree.Element:
    """A test suite without its cases."""
    attributes = {
        "name": _plain(f"deploykit gate {candidate}"),
        **{name: str(count) for name, count in counts.items()},
        "time": f"{seconds:.3f}",
        "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": platform.node() or "localhost",
    }
    suite = ElementTree.Element("testsuite", attributes)
    listed = ElementTree.SubElement(suite, "properties")
    for name, value in properties.items():
        ElementTree.SubElement(listed, "property", {"name": name, "value": _plain(value)})
    return suite


def _document(suite: ElementTree.Element, out: str, err: str) -> str:
    """The suite with its two streams, which are plain text: no reader of JUnit renders Markdown."""
    ElementTree.SubElement(suite, "system-out").text = out or None
    ElementTree.SubElement(suite, "system-err").text = err or None
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _add_case(suite: ElementTree.Element, row: Row, result: Result) -> None:
    share = result.seconds / len(result.rows)
    attributes = {"classname": _of(result.candidate.name), "name": _plain(row.name), "time": f"{share:.3f}"}
    case = ElementTree.SubElement(suite, "testcase", attributes)
    text = _plain(row.sentence + (f"\n{row.look}" if row.look else ""))
    if row.status == "FAIL":
        attributes = {"type": _plain(row.limit or row.name), "message": _plain(row.sentence)}
        ElementTree.SubElement(case, "failure", attributes).text = text
    elif row.status != "PASS":
        ElementTree.SubElement(case, "skipped", {"message": _plain(f"{row.status}: {text}")})


def _cell(text: str) -> str:
    """Text that cannot leave its cell of a table, nor become markup, a link or a picture."""
    escaped = _MARKUP.sub(r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))
    escaped = _ADDRESS.sub(r"\\\g<0>", escaped)
    return " ".join(_plain(escaped).split())


def _code(text: str) -> str:
    """Text as code that it cannot leave."""
    return "`" + " ".join(_plain(text).replace("`", "'").split()) + "`"


def _escaped(text: str, *, property: bool = False) -> str:
    found = _plain(text).replace("%", "%25").replace("\n", "%0A")
    return found.replace(":", "%3A").replace(",", "%2C") if property else found


def _cut(text: str, most: int) -> str:
    data = text.encode()
    if len(data) <= most:
        return text
    end = "\n\n(cut: longer than a step's summary may be)\n"
    return data[: most - len(end.encode())].decode(errors="ignore") + end
