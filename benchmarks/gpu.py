"""A bundle on an NVIDIA GPU beside torch fp16 with fused attention: agreement and device time, over batch x length.

    deploykit export MODEL -o gpu.bundle -t tensorrt -t onnxruntime-cuda -p fp16 -p int8 -p fp8 --calibration texts.txt
    python -m benchmarks.gpu --bundle gpu.bundle --model MODEL -o gpu.json --markdown gpu.md

The first command needs no GPU. The second needs no network, and begins nothing after ``--minutes`` (6). What it uses,
as wheels for Python 3.11 on x86-64 Linux; an arm whose package, variant or GPU is missing gets "not run", never a
figure. Where a store or a link takes no file of that size, `split -b` and `cat` carry a wheel in parts:

======================  ======  ==================================================================================
torch 2.15              539 MB  with the CUDA 13 libraries that it asks for 2.6 GB (cudnn 519, cublas 405, triton 286)
transformers 5.23        13 MB  the torch arms
onnxruntime-gpu 1.31    256 MB  the arm onnxruntime-cuda; in place of onnxruntime, with torch's CUDA libraries
tensorrt-rtx 1.7         95 MB  the arms tensorrt-rtx: compute capability 7.5 to 8.9, 12.0 and 12.1, not 9.0
tensorrt 10 or 11       NVIDIA  the arms tensorrt: not on the package index; its own installer fetches 2 GB or more
======================  ======  ==================================================================================

Every call's inputs lie on the device. Its time is that between two events in its stream: kernels and the gaps that
launching leaves between them. Arms take turns in an order drawn anew for each round; a round's value is the median of
its calls. ``--dry`` does all of it on a CPU, with a wall clock, to try the script: the page says that it is no result.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.results import interval, quality

BASELINES = ("torch-fp16", "torch-fp16-graph")
"""Torch as it is called, which waits for Python to launch, and as a graph, which does not: the faster one counts."""
#: What each precision must agree with torch fp32 to, as the mean cosine.
PARITY = {"fp16": 0.9999, "int8": 0.99, "fp8": 0.99}
#: The batches at which an engine must not be slower than the baseline.
COMPARED = (1, 32)

_BEGUN = time.monotonic()
"""Reading the model and checking the bundle count too."""

Feeds = Mapping[str, np.ndarray]


class Runner(Protocol):
    """One arm, opened. `load` puts inputs on the device, `call` runs once on them and waits for nothing."""

    def load(self, feeds: Feeds) -> None: ...
    def call(self) -> None: ...
    def vectors(self) -> np.ndarray: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Arm:
    """``missing`` says why it cannot run here; else ``open`` opens it."""

    name: str
    precision: str
    open: Callable[[], Runner] | None
    missing: str = ""


@dataclass(frozen=True)
class Point:
    """One size of the grid."""

    batch: int
    length: int


@dataclass(frozen=True)
class Plan:
    """How often; ``seconds`` after ``begun`` no further arm is opened and no point begun."""

    rounds: int = 7
    calls: int = 30
    warm_up: int = 5
    seconds: float = 360.0
    seed: int = 0
    begun: float = field(default_factory=time.monotonic)


Timer = Callable[[Callable[[], None], int], list[float]]


def compare(
    arms: Sequence[Arm],
    points: Sequence[Point],
    feeds: Callable[[Point], Feeds],
    reference: Callable[[Feeds], np.ndarray],
    timer: Timer,
    plan: Plan,
) -> list[dict[str, Any]]:
    """A row for each arm at each point: figures, or ``not_run`` with the reason."""
    draw = random.Random(plan.seed)
    missing = {arm.name: arm.missing for arm in arms if arm.open is None}
    opened: dict[str, Runner] = {}
    rows = []
    with contextlib.ExitStack() as stack:
        for arm in arms:
            if arm.open is None:
                continue
            if time.monotonic() - plan.begun > plan.seconds:  # an engine may have to be built
                missing[arm.name] = "the time was up"
                continue
            try:
                opened[arm.name] = arm.open()
                stack.callback(opened[arm.name].close)
            except Exception as error:  # whatever a library says: the other arms go on
                missing[arm.name] = _first_line(error)
        for point in points:
            if time.monotonic() - plan.begun > plan.seconds:
                reasons = dict.fromkeys(opened, "the time was up")
                found: dict[str, dict[str, Any]] = {}
            else:
                found, reasons = _at(opened, feeds(point), reference, timer, plan, draw)
            for arm in arms:
                facts = found.get(arm.name) or {"not_run": missing.get(arm.name) or reasons[arm.name]}
                rows.append({"arm": arm.name, "precision": arm.precision, **asdict(point), **facts})
    return rows


def _at(
    opened: Mapping[str, Runner],
    feeds: Feeds,
    reference: Callable[[Feeds], np.ndarray],
    timer: Timer,
    plan: Plan,
    draw: random.Random,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The figures of those that ran at one point, and the reasons of those that did not."""
    truth = reference(feeds)
    agreement: dict[str, dict[str, float]] = {}
    reasons: dict[str, str] = {}
    for name, runner in opened.items():
        try:
            runner.load(feeds)
            for _ in range(plan.warm_up):
                runner.call()
            agreement[name] = quality(runner.vectors(), truth, None)
        except Exception as error:  # a shape that one engine does not take; the others go on
            reasons[name] = _first_line(error)
    times: dict[str, list[float]] = {name: [] for name in agreement}
    for _ in range(plan.rounds):
        for name in draw.sample(sorted(times), len(times)):
            try:
                timer(opened[name].call, 2)  # the other arm's data leave the caches
                times[name].append(statistics.median(timer(opened[name].call, plan.calls)))
            except Exception as error:  # what was measured of the others stays
                reasons[name] = _first_line(error)
                del times[name]
    return {name: {"ms": interval(values), **agreement[name]} for name, values in times.items()}, reasons


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each arm that a bar is set for: does it agree, and is it at least as fast as the faster baseline? None: not
    run.
    """
    base: dict[tuple[int, int], float] = {}
    for row in (row for row in rows if row["arm"] in BASELINES and "ms" in row):
        place = row["batch"], row["length"]
        base[place] = min(row["ms"]["median"], base.get(place, float("inf")))
    found = []
    for name, precision in dict.fromkeys((row["arm"], row["precision"]) for row in rows):
        if precision not in PARITY or name.startswith("torch"):
            continue
        ran = [row for row in rows if row["arm"] == name and "ms" in row]
        ratios = {
            batch: [
                row["ms"]["median"] / base[batch, row["length"]]
                for row in ran
                if row["batch"] == batch and (batch, row["length"]) in base
            ]
            for batch in COMPARED
        }
        found.append(
            {
                "arm": name,
                "cosine": min((row["cosine_mean"] for row in ran), default=None),
                "agrees": all(row["cosine_mean"] >= PARITY[precision] for row in ran) if ran else None,
                "slowest": {str(batch): max(values) if values else None for batch, values in ratios.items()},
                "as_fast": {str(batch): max(values) <= 1.0 if values else None for batch, values in ratios.items()},
            }
        )
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The page: conditions, the grid, and the bars."""
    rows = result["rows"]
    names = list(dict.fromkeys(row["arm"] for row in rows))
    points = list(dict.fromkeys((row["batch"], row["length"]) for row in rows))
    cells = {(row["arm"], row["batch"], row["length"]): row for row in rows}
    reasons = dict.fromkeys(f"{row['arm']}: {row['not_run']}" for row in rows if "not_run" in row)
    lines = ["# Encoders on an NVIDIA GPU, side by side", ""]
    if result["dry"]:
        lines += ["**A dry run on a CPU, to try the script: nothing here is a result.**", ""]
    lines += [
        f"- **Device** {result['device']}",
        f"- **Versions** {', '.join(f'{k} {v}' for k, v in result['versions'].items())}",
        f"- **Rounds** {result['plan']['rounds']} of {result['plan']['calls']} calls, order drawn anew each round "
        f"(seed {result['plan']['seed']}); ms between two events in the stream, "
        "median of the rounds' medians [interval]",
        f"- **Command** `{result['command']}`",
        "",
        "| batch x length | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
        *(f"| {b} x {n} | " + " | ".join(_cell(cells[name, b, n]) for name in names) + " |" for b, n in points),
        "",
        "| arm | lowest mean cosine to torch fp32 | enough | slowest against "
        f"the faster of {' and '.join(BASELINES)} at batch {COMPARED[0]} | at batch {COMPARED[1]} |",
        "|---|---|---|---|---|",
        *(_bar(bar) for bar in verdicts(rows)),
    ]
    lines += ["", "Not run:", "", *(f"- {reason}" for reason in reasons)] if reasons else []
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    if "ms" not in row:
        return "not run"
    return f"{row['ms']['median']:.3f} [{row['ms']['low']:.3f}, {row['ms']['high']:.3f}]"


def _bar(bar: Mapping[str, Any]) -> str:
    cosine = "not run" if bar["cosine"] is None else f"{bar['cosine']:.6f}"
    agrees = {None: "not run", True: "yes", False: "**no**"}[bar["agrees"]]
    times = ["not run" if value is None else f"{value:.2f}x" for value in bar["slowest"].values()]
    return f"| {bar['arm']} | {cosine} | {agrees} | {times[0]} | {times[1]} |"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def wall_clock(call: Callable[[], None], count: int) -> list[float]:
    """Milliseconds of each call, for the dry run."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - begun))
    return times


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 also where arms did not run: the page says which and why."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", required=True, help="the source of the bundle, for torch")
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--length", default="16,128")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--calls", type=int, default=Plan.calls)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--dry", action="store_true", help="on a CPU, to try the script")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--markdown", type=Path, default=Path("gpu.md"))
    given = parser.parse_args(arguments)
    from benchmarks import gpu_arms

    plan = Plan(given.rounds, given.calls, seconds=60 * given.minutes, begun=_BEGUN)
    points = [Point(int(b), int(n)) for b in given.batch.split(",") for n in given.length.split(",")]
    bench = gpu_arms.bench(given.bundle, given.model, dry=given.dry)
    rows = compare(bench.arms, points, bench.feeds, bench.reference, bench.timer, plan)
    result = {
        "schema": "deploykit.benchmarks.gpu/1",
        "dry": given.dry,
        "device": bench.device,
        "versions": bench.versions,
        "command": "python -m benchmarks.gpu " + " ".join(sys.argv[1:] if arguments is None else arguments),
        "plan": asdict(plan),
        "rows": rows,
        "verdicts": verdicts(rows),
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    given.markdown.write_text(markdown(result), encoding="utf-8")
    print(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
