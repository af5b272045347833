"""From the rows of a coverage sweep to ``results/coverage.json`` and ``coverage.md``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
_ENDS = ("proven", "refused", "wrong", "crash", "hang")
_VARIANTS = (
    "onnxruntime-fp32",
    "openvino-fp32",
    "onnxruntime-int8",
    "openvino-int8",
    "tensorrt-int8",
)


def write(arms: Mapping[str, Rows], folder: Path) -> None:
    """Write the JSON and the page below ``folder``; ``arms`` maps who exported to the rows by architecture.

    Rows that are there already stay where there is no newer one.
    """
    arms = _together(folder / "results" / "coverage.json", arms)
    result = {"versions": _versions(), "arms": {arm: list(rows.values()) for arm, rows in arms.items()}}
    (folder / "results" / "coverage.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", "utf-8")
    (folder / "coverage.md").write_text(markdown(arms, result["versions"]), "utf-8")


def _together(figures: Path, arms: Mapping[str, Rows]) -> dict[str, Rows]:
    before = json.loads(figures.read_text("utf-8"))["arms"] if figures.exists() else {}
    known = {arm: {row["name"]: row for row in rows} for arm, rows in before.items()}
    return {arm: {**known.get(arm, {}), **arms.get(arm, {})} for arm in sorted({*known, *arms})}


def markdown(arms: Mapping[str, Rows], versions: Mapping[str, str]) -> str:
    """The page: counts for each stage, then one line for each architecture, then what was refused and why."""
    page = [
        "# Architectures that export",
        "",
        "Written by the command below. Tiny, randomly initialised models from transformers' own config classes, saved",
        "as checkpoint folders; each in a process of its own. *proven*: every batch size and size of the dynamic axes,",
        "padding included, agrees with torch on the engine that runs it. *refused*: no bundle, with a diagnosis.",
        "*wrong*: an export outside the tolerance of the fp32 proof, be it by a little, that does not say so. Seconds",
        "and memory are no timings: other jobs may have run beside it. *of* is how many were tried.",
        "",
        "- **Command** `python benchmarks/coverage.py`",
        f"- **Versions** {', '.join(f'{name} {number}' for name, number in versions.items())}",
        "",
        *_counts(arms),
    ]
    for arm, rows in arms.items():
        page += ["", f"## {arm}, one by one", "", *_each(rows), *_reasons(rows)]
    return "\n".join(page) + "\n"


def end_of(row: Mapping[str, Any], stage: str) -> str:
    """How one architecture came out at one stage: what stopped it before counts there too; – where it was not tried."""
    results = row["results"]
    if stage in results:
        return str(results[stage]["result"])
    first = next((fact["result"] for fact in results.values() if fact["result"] != "proven"), None)
    tried = "export" not in results or results["export"]["result"] != "proven"
    return str(first) if tried and first is not None and _asked(row, stage) else "–"


def _asked(row: Mapping[str, Any], stage: str) -> bool:
    return stage in _VARIANTS[:2] or bool(row.get("stages") == "all")


def _counts(arms: Mapping[str, Rows]) -> Iterable[str]:
    yield f"| export by | engine and precision | of | {' | '.join(_ENDS)} |"
    yield "|---|---|---|" + "---|" * len(_ENDS)
    for arm, rows in arms.items():
        for stage in _VARIANTS:
            ends = Counter(end_of(row, stage) for row in rows.values())
            total = sum(ends[end] for end in _ENDS)
            if total:
                yield f"| {arm} | {stage} | {total} | {' | '.join(str(ends[end]) for end in _ENDS)} |"


def _each(rows: Rows) -> Iterable[str]:
    stages = [stage for stage in _VARIANTS if any(end_of(row, stage) != "–" for row in rows.values())]
    yield f"| architecture | {' | '.join(stages)} | seconds | peak MiB |"
    yield "|---|" + "---|" * (len(stages) + 2)
    for name, row in sorted(rows.items(), key=lambda item: (item[1]["modality"], item[0])):
        ends = " | ".join(end_of(row, stage) for stage in stages)
        yield f"| {name} | {ends} | {row['seconds']:.0f} | {row['peak_mib'] or '–'} |"


def _reasons(rows: Rows) -> list[str]:
    told = [
        f"- **{name}**, {stage}: {' '.join(str(fact.get('why', '')).split())}"
        for name, row in sorted(rows.items())
        for stage, fact in row["results"].items()
        if fact["result"] != "proven"
    ]
    notes = [
        f"- **{name}**: {' '.join(note.split())}" for name, row in sorted(rows.items()) for note in row.get("notes", [])
    ]
    return [*(["", "Not proven:", "", *told] if told else []), *(["", "Announced:", "", *notes] if notes else [])]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
