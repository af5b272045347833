"""Which architectures export, and are right: tiny models of many kinds through `deploykit.export`, or through a peer.

Each architecture (`benchmarks.coverage_models`) is saved as a checkpoint folder and exported in a process of its own
with a time limit. A variant counts when it was proven against torch at the whole shape matrix on the engine that runs
it. Rows are appended to ``FOLDER/NAME.jsonl`` as they come: a stopped sweep goes on where it was.

    python benchmarks/coverage.py                  # deploykit, fp32 on onnxruntime and OpenVINO
    python benchmarks/coverage.py --stages all     # int8 on both and the TensorRT form in addition
    python benchmarks/coverage.py --peer torch     # torch.onnx.export(dynamo=True) alone, judged by the same proof
    python benchmarks/coverage.py --peer optimum   # optimum in an environment of its own
    python benchmarks/coverage.py --page           # results/coverage.json and coverage.md from the rows
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import coverage_page  # noqa: E402
from benchmarks.coverage_more import EVERY  # noqa: E402
from benchmarks.coverage_worker import wait, work  # noqa: E402

STAGES = ("fp32", "all")
PEERS = ("torch", "optimum")


def main() -> None:
    """Run what is not there yet, then write the page."""
    asked = _arguments()
    asked.rows.mkdir(parents=True, exist_ok=True)
    if not asked.page:
        _import_once()
        sweep(asked.rows, asked.peer or "deploykit", asked.stages, asked.only or list(EVERY), asked.timeout)
    coverage_page.write({path.stem: read_rows(path) for path in sorted(asked.rows.glob("*.jsonl"))}, HERE)


def sweep(folder: Path, arm: str, stages: str, names: Iterable[str], timeout_s: float) -> None:
    """Append a row for every architecture that has none, and one with the lowered forms where they are asked for."""
    path = folder / f"{arm}.jsonl"
    done = read_rows(path)
    for name in names:
        row = done.get(name)
        if row is None:
            row = {
                "name": name,
                "modality": EVERY[name].modality,
                "stages": "fp32",
                **_one(arm, name, "fp32", timeout_s),
            }
            _append(path, row)
        if stages == "all" and row["stages"] != "all":
            exported = row["results"].get("export", {}).get("result") == "proven"
            _append(path, added(row, _one(arm, name, "lowered", timeout_s) if exported else {}))


def added(row: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what its lowered forms came to; what is in the row already stands."""
    results = {**more.get("results", {}), **row["results"]}
    seconds = round(row["seconds"] + more.get("seconds", 0.0), 1)
    peak = max(row["peak_mib"], more.get("peak_mib", 0))
    return {**row, "stages": "all", "results": results, "seconds": seconds, "peak_mib": peak}


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as sink:
        sink.write(json.dumps(row, sort_keys=True) + "\n")
    print(f"{row['name']:28} {row['seconds']:6.1f} s  {_line(row)}", flush=True)


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Rows by architecture; the last one of a name stands."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {row["name"]: row for row in rows}


def _one(arm: str, name: str, stages: str, timeout_s: float) -> dict[str, Any]:
    """One architecture in a process of its own; a process that dies or hangs is a result too."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="coverage-") as scratch:
        answer = Path(scratch) / "row.json"
        process = os.fork()
        if process == 0:
            _answer(answer, lambda: work(arm, name, stages, Path(scratch), timeout_s))
        code = wait(process, timeout_s)
        if answer.exists() and code == 0:
            row: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return {**row, "seconds": round(time.perf_counter() - begun, 1)}
        if code is None:
            return _lost("hang", f"still running after {timeout_s:.0f} s", begun)
        last = ((Path(scratch) / "log.txt").read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        return _lost("crash", f"ended with code {code}: {last[:300]}", begun)


def _answer(answer: Path, ask: Callable[[], Mapping[str, Any]]) -> NoReturn:
    """The forked side: leave the row's facts in ``answer``, and what was printed in ``log.txt`` beside it; does not
    return.
    """
    scratch = answer.parent
    code = 1
    try:
        os.setsid()
        os.environ |= {"DEPLOYKIT_STORE": f"{scratch}/store", "TOKENIZERS_PARALLELISM": "false"}
        with (scratch / "log.txt").open("wb") as sink:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
        answer.write_text(json.dumps(ask()), encoding="utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _import_once() -> None:
    """Import what every architecture needs, and let the exporter build its tables, before the forks.

    One thread for torch: a pool of threads does not survive a fork.
    """
    for name in ("transformers", "onnx", "onnxscript.optimizer", "onnxruntime", "openvino"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(torch.nn.Linear(3, 2).eval(), (torch.ones(2, 3),), dynamo=True, verbose=False)


def _lost(result: str, why: str, begun: float) -> dict[str, Any]:
    seconds = round(time.perf_counter() - begun, 1)
    return {"results": {"export": {"result": result, "why": why}}, "seconds": seconds, "peak_mib": 0}


def _line(row: Mapping[str, Any]) -> str:
    """What went well in a word, what did not with its reason."""
    found = row["results"].items()
    bad = [
        f"{stage}: {fact['result']}: {fact.get('why', '')[:200]}" for stage, fact in found if fact["result"] != "proven"
    ]
    return "; ".join(bad) or "proven"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=PEERS, help="a peer instead of deploykit")
    parser.add_argument("--stages", choices=STAGES, default="fp32", help="fp32, or all: int8 and TensorRT's form too")
    parser.add_argument("--only", nargs="*", choices=list(EVERY), metavar="NAME", help="these architectures")
    parser.add_argument("--rows", type=Path, default=Path("build/coverage"), help="folder of the rows")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one architecture")
    parser.add_argument("--page", action="store_true", help="only write the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
