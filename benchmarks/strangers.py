"""What people really bring: folders, files and settings as they are published, judged by the original library alone.

Every row is made on the spot, with random weights and tokenizers trained here: nothing is downloaded. The original
library (transformers, sentence-transformers, tokenizers with onnxruntime, torch) embeds the raw inputs by its own
public call, one at a time. `deploykit export` runs as a process with a store of its own, and the bundle embeds the same
raw inputs in another process without torch. A row is *right* (cosine of its worst input at least 0.99999, and the same
norms), *refused with a fix*, *WRONG* (exported, and differs), or *TRACEBACK* (ended without a fix).

    python benchmarks/strangers.py                     # all rows, on onnxruntime in fp32
    python benchmarks/strangers.py --only 'text/*'     # rows whose group/name matches; the others stay as they are
    python benchmarks/strangers.py --list              # names alone
    python benchmarks/strangers.py --rows FILE         # rows go to FILE alone, and no page is written
    python benchmarks/strangers.py --reading           # a quick look: what is read, run by torch, without any export
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import (  # noqa: E402
    strangers_architectures,
    strangers_audio,
    strangers_files,
    strangers_images,
    strangers_modules,
    strangers_page,
    strangers_reading,
    strangers_sentence,
    strangers_settings,
    strangers_text,
)
from benchmarks import strangers_judge as judge  # noqa: E402
from benchmarks.coverage_worker import wait  # noqa: E402
from benchmarks.strangers_kit import TRAP, Stranger  # noqa: E402

_MODULES = (
    strangers_text,
    strangers_settings,
    strangers_sentence,
    strangers_modules,
    strangers_images,
    strangers_audio,
    strangers_architectures,
    strangers_files,
)
EVERY: Sequence[Stranger] = [
    *(row for module in _MODULES for row in module.ROWS.found),
    *strangers_files.WRONG_THINGS.found,
]
_ALIKE = 0.995
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "2000", "NO_COLOR": "1"}


def main() -> None:
    """Run what was asked for; write rows as they come, and the page at the end."""
    asked = _arguments()
    chosen = [row for row in EVERY if any(fnmatch.fnmatch(name_of(row), p) for p in asked.only)]
    if asked.list:
        print("\n".join(name_of(row) for row in chosen))
        return
    if asked.reading:
        for row in chosen:
            told = strangers_reading.run(row)
            print(f"{name_of(row):52} {strangers_page.line({**vars(told)})}", flush=True)
        return
    path = asked.rows or HERE / "results" / "strangers.json"
    known = strangers_page.read(path)
    os.environ.update(_ONE_THREAD)
    for library in ("transformers", "sentence_transformers"):  # once, before the forks
        importlib.import_module(library)
    with ThreadPoolExecutor(asked.jobs) as pool:
        for row in pool.map(lambda stranger: run(stranger, asked.timeout, asked.keep), chosen):
            known[row["name"]] = row
            strangers_page.write(path, known, [name_of(row) for row in EVERY])
            print(f"{row['name']:44} {row['seconds']:6.1f} s  {strangers_page.line(row)}", flush=True)
    if asked.rows is None:
        strangers_page.write_page(path, HERE / "strangers.md")


def run(stranger: Stranger, timeout_s: float, keep: Path | None = None) -> dict[str, Any]:
    """One row: made, exported, encoded and judged; ``keep`` names a folder in which its files stay."""
    begun = time.perf_counter()
    name = name_of(stranger)
    folder = Path(tempfile.mkdtemp(prefix="strangers-"))
    try:
        verdict, command = _judged(stranger, folder, timeout_s)
        if keep is not None:
            shutil.copytree(folder, keep / name, dirs_exist_ok=True, symlinks=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "name": name,
        "result": verdict.result,
        "why": verdict.why.replace(str(folder), "…"),
        "cosine": verdict.cosine,
        "command": command.replace(f"{folder}/", ""),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _judged(stranger: Stranger, folder: Path, timeout_s: float) -> tuple[judge.Verdict, str]:
    failed = _make_apart(stranger, folder, timeout_s)
    if failed:
        return judge.Verdict(judge.UNMADE, failed), ""
    case = json.loads((folder / "case.json").read_text("utf-8"))
    words = ["export", case["source"], "-o", str(folder / "row.bundle"), "-t", "onnxruntime", "-p", "fp32"]
    words += case["options"]
    code, log = _in_process([sys.executable, "-m", "deploykit", *words], folder, timeout_s)
    command = " ".join(["deploykit", *words])
    verdict = judge.of_export(code, log)
    if (folder / TRAP).exists():
        verdict = judge.Verdict(judge.WRONG, "code inside the source was run")
    if verdict is None:
        verdict = _encoded(case, folder, timeout_s) if case["calls"] else judge.of_calls([], [])
    return verdict, command


def _encoded(case: Mapping[str, Any], folder: Path, timeout_s: float) -> judge.Verdict:
    code, log = _in_process([sys.executable, str(HERE / "strangers_worker.py"), str(folder)], folder, timeout_s)
    if code != 0:
        return judge.Verdict(judge.TRACEBACK, f"encode ended with code {code}: {log.strip()[-300:]}")
    facts = json.loads((folder / "encoded.json").read_text("utf-8"))
    got = [_array(folder / f"got-{index}.npy") for index in range(len(facts))]
    wanted = [
        judge.Wanted(_array(folder / f"expected-{index}.npy"), call["least"])
        for index, call in enumerate(case["calls"])
    ]
    return judge.of_calls(wanted, judge.answers_of(facts, got))


def _array(path: Path) -> np.ndarray | None:
    return np.load(path) if path.exists() else None


def _in_process(words: Sequence[str], folder: Path, timeout_s: float) -> tuple[int | None, str]:
    """Exit code (None: stopped) and what was printed, of a process with its whole group and a store of its own."""
    around = {**os.environ, "DEPLOYKIT_STORE": str(folder / "store"), "PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen(
        words, cwd=folder, env=around, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        return None, out.decode("utf-8", "replace")
    return process.returncode, out.decode("utf-8", "replace")


def _make_apart(stranger: Stranger, folder: Path, timeout_s: float) -> str:
    """`make` in a forked process, whose memory and settings go with it; why it failed, empty where it did not."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.setsid()
            with (folder / "made.log").open("wb") as sink:
                os.dup2(sink.fileno(), 1)
                os.dup2(sink.fileno(), 2)
            make(stranger, folder)
            code = 0
        except BaseException as error:
            traceback.print_exc()
            print(" ".join(traceback.format_exception_only(error)[-1].split()), file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    if wait(process, timeout_s) == 0 and (folder / "case.json").exists():
        return ""
    return ((folder / "made.log").read_text(errors="replace").strip().splitlines() or ["no output"])[-1][:400]


def make(stranger: Stranger, folder: Path) -> None:
    """Write the source, the calls and what the original library says."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = stranger.make(folder / "source")
    for call in case.calls:
        _tells_apart(call.expected)
    listed = []
    for index, call in enumerate(case.calls):
        if call.expected is not None:
            np.save(folder / f"expected-{index}.npy", np.asarray(call.expected, dtype=np.float32))
        if isinstance(call.inputs, Mapping):
            np.savez(folder / f"tensors-{index}.npz", **call.inputs)
        inputs = None if isinstance(call.inputs, Mapping) else [str(entry) for entry in call.inputs]
        listed.append({"inputs": inputs, "kind": call.kind, "least": call.least})
    (folder / "calls.json").write_text(json.dumps(listed), encoding="utf-8")
    told = {"source": str(case.source), "options": list(case.options), "calls": listed}
    (folder / "case.json").write_text(json.dumps(told), encoding="utf-8")


def _tells_apart(expected: np.ndarray | None) -> None:
    """A library whose vectors are all alike, or not finite, cannot judge: the row is badly made."""
    if expected is None or len(expected) < 2:
        return
    rows = np.asarray(expected, dtype=np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or (rows @ rows.T).min() > _ALIKE:
        raise ValueError(f"the library's {len(rows)} vectors are all alike, or not finite: they cannot judge anything")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="rows by group/name, with * and ?")
    parser.add_argument("--list", action="store_true", help="print the names of the rows, and do nothing else")
    parser.add_argument("--jobs", type=int, default=1, help="rows side by side")
    parser.add_argument("--rows", type=Path, help="write the rows here, and no page")
    parser.add_argument("--reading", action="store_true", help="a quick look without export; writes nothing")
    parser.add_argument("--keep", type=Path, help="copy the files of every row below this folder")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for each process of a row")
    return parser.parse_args()


def name_of(stranger: Stranger) -> str:
    """``group/name``, unique."""
    return f"{stranger.group}/{stranger.name}"


if __name__ == "__main__":
    main()
