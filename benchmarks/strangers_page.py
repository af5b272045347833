"""From the rows of `benchmarks.strangers` to ``results/strangers.json`` and ``strangers.md``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.strangers_judge import REFUSED, RIGHT, VERDICTS

Rows = Mapping[str, Mapping[str, Any]]


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by name; none where there is no file."""
    return {row["name"]: row for row in json.loads(path.read_text("utf-8"))["rows"]} if path.exists() else {}


def write(path: Path, rows: Rows, order: Sequence[str]) -> None:
    """Write the rows in ``order``, with the machine and the versions; rows that no longer exist are left out."""
    from deploykit.measure import fingerprint

    listed = [rows[name] for name in order if name in rows]
    result = {"machine": fingerprint.machine(), "software": fingerprint.software(), "rows": listed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_page(path: Path, page: Path) -> None:
    """The page from the JSON."""
    page.write_text(markdown(json.loads(path.read_text("utf-8"))), encoding="utf-8")


def line(row: Mapping[str, Any]) -> str:
    """One row in a line: the result, the cosine, and why."""
    cosine = "" if row["cosine"] is None else f"cosine {row['cosine']:.6f} "
    return f"{row['result']} {cosine}{row['why']}".strip()


def markdown(result: Mapping[str, Any]) -> str:
    """The page: counts for each group, then every row."""
    rows = result["rows"]
    machine, software = result["machine"], result["software"]
    versions = ", ".join(f"{name} {number}" for name, number in software.items() if isinstance(number, str))
    lines = [
        "# What people bring",
        "",
        "Written by the command below. Folders, files and settings as they are published and as they stand in bug",
        "reports, made on the spot with random weights and exported by `deploykit export` in fp32 on onnxruntime. The",
        "same raw inputs (texts, image files, sound files) go through the bundle and, one at a time, through the",
        "original library's own public call. *right*: the worst input has a cosine of at least 0.99999 and the same",
        "norm. *refused with a fix*: no bundle or no vector, and a line that says what to do. *WRONG*: exported, and",
        "differs. *TRACEBACK*: ended without a fix. *not made*: the library itself failed on the row.",
        "",
        "- **Command** `python benchmarks/strangers.py`",
        f"- **Machine** {machine.get('cpu', '')}, hw {machine.get('id', '')}",
        f"- **Versions** {versions}",
        "",
        *_counts(rows),
    ]
    for group in dict.fromkeys(_group(row) for row in rows):
        lines += ["", f"## {group}", "", "| row | result | worst cosine | options |", "|---|---|---|---|"]
        chosen = [row for row in rows if _group(row) == group]
        lines += [_line_of(row) for row in chosen]
        lines += _reasons(chosen)
    return "\n".join(lines) + "\n"


def _group(row: Mapping[str, Any]) -> str:
    return str(row["name"]).partition("/")[0]


def _counts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [verdict for verdict in VERDICTS if verdict in VERDICTS[:4] or any(r["result"] == verdict for r in rows)]
    lines = [f"| group | rows | {' | '.join(shown)} |", "|---|---|" + "---|" * len(shown)]
    for group in [*dict.fromkeys(_group(row) for row in rows), "all"]:
        ends = Counter(row["result"] for row in rows if group in (_group(row), "all"))
        lines.append(f"| {group} | {sum(ends.values())} | {' | '.join(str(ends[end]) for end in shown)} |")
    return lines


def _line_of(row: Mapping[str, Any]) -> str:
    cosine = "–" if row["cosine"] is None else f"{row['cosine']:.6f}"
    options = row["command"].partition("-p fp32")[2].strip()
    told = f"`{options}`" if options else ""
    return f"| {str(row['name']).partition('/')[2]} | {row['result']} | {cosine} | {told} |"


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [
        f"- **{str(row['name']).partition('/')[2]}**: {' '.join(str(row['why']).split())}"
        for row in sorted(rows, key=lambda row: row["result"] == REFUSED)
        if row["result"] != RIGHT and row["why"]
    ]
    return ["", *told] if told else []
