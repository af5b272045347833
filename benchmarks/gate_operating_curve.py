"""The gate's operating curve on a real machine: how often it cries wolf, and how small a slow-down it catches.

::

    python benchmarks/gate_operating_curve.py --bundle build/minilm.bundle@openvino-int8

Runs the gate's own timing (`deploykit.gate.aa`) of one variant against itself: 12 times as it is, 12 times with a
candidate that burns 5 % more time in every call, 8 times with 10 %. Every run is added to
``results/gate_operating_curve.json`` when it is done, so that a stopped run goes on where it was; runs of another
machine, bundle or setting are refused. The page is ``gate_operating_curve.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deploykit.gate import Choices, Timing, aa
from deploykit.gate.limits import limits
from deploykit.gate.result import rate_bound, verdict
from deploykit.measure import fingerprint
from deploykit.measure.paired import Rules
from deploykit.measure.stats import median
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.loading import split_variant

HERE = Path(__file__).parent
PLAN = ((0.0, 12), (0.05, 12), (0.10, 8))
SCHEMA = "deploykit.gate_operating_curve/1"


@dataclass(frozen=True)
class Setting:
    """What all runs of one curve share."""

    bundle: str
    digest: str
    variant: str
    budget: str
    workload: str | None
    threads: int | None
    timing: dict[str, Any]
    rules: dict[str, Any]
    hardware: str


def main() -> int:
    """Do what is missing of the plan, then write the page."""
    options = parsed(sys.argv[1:])
    choices = Choices(
        budget=options.budget,
        data=options.data,
        workload=options.workload,
        threads=options.threads,
        timing=Timing(options.seconds, options.calls, options.warm_seconds, options.warm_calls),
        rules=Rules(options.screen, tuple(options.confirm)),
    )
    place, variant = split_variant(options.bundle)
    setting = Setting(
        bundle=place.name,
        digest=Bundle.open(place).digest,
        variant=variant or "",
        budget=str(limits(choices.budget).only(["p50", "p99", "throughput"])),
        workload=options.workload,
        threads=options.threads,
        timing=asdict(choices.timing),
        rules=asdict(choices.rules),
        hardware=fingerprint.machine()["id"],
    )
    kept = opened(options.results, setting)
    plan = [(share, round(count * options.scale)) for share, count in PLAN]
    for share, count in plan:
        for index in range(done(kept, share), count):
            began = time.monotonic()
            kept["runs"].append(one(options.bundle, choices, share, seed=1000 * round(100 * share) + index))
            save(options.results, kept)
            found = kept["runs"][-1]
            print(f"+{share:.0%} {index + 1}/{count}: {found['verdict']}, {time.monotonic() - began:.0f} s", flush=True)
    page = rendered(kept, " ".join(["python", "benchmarks/gate_operating_curve.py", *sys.argv[1:]]))
    options.page.write_text(page, encoding="utf-8")
    print(page)
    return 0


def one(bundle: str, choices: Choices, share: float, seed: int) -> dict[str, Any]:
    """One gate of the bundle against itself, the candidate slower by ``share``."""
    again = replace(choices, seed=seed, timing=replace(choices.timing, extra_work=share))
    result = aa(bundle, 1, again)
    (compared,) = result.comparisons
    return {
        "slower": share,
        "seed": seed,
        "verdict": verdict([found.status for found in compared]),
        "metrics": [
            {
                key: getattr(found, key)
                for key in ("metric", "status", "stage", "pairs", "change", "low", "high", "bound", "half_width")
            }
            for found in compared
        ],
        "seconds": result.seconds,
        "noise": result.noise,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def opened(path: Path, setting: Setting) -> dict[str, Any]:
    """What was kept before; another machine, bundle or setting is an error, for its runs could not be counted with."""
    if not path.exists():
        machine, software = fingerprint.machine(), fingerprint.software()
        return {"schema": SCHEMA, "setting": asdict(setting), "machine": machine, "software": software, "runs": []}
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(asdict(setting)))
    for key, value in now.items():
        if kept["setting"].get(key) != value:
            raise SystemExit(
                f"{path} holds runs with {key} = {kept['setting'].get(key)!r}, not {value!r}: move it away"
            )
    return kept


def save(path: Path, kept: dict[str, Any]) -> None:
    """In one rename: a stopped run loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    # Infinite bounds (too few pairs for the confidence) become null.
    text = json.dumps(kept, indent=1, default=str).replace("-Infinity", "null").replace("Infinity", "null")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)


def done(kept: dict[str, Any], share: float) -> int:
    """Runs of that slow-down so far."""
    return sum(run["slower"] == share for run in kept["runs"])


def rendered(kept: dict[str, Any], command: str) -> str:
    """The page: a row for each slow-down, then every run."""
    setting, machine = kept["setting"], kept["machine"]
    lines = [
        "# The gate's operating curve",
        "",
        f"`{setting['bundle']}@{setting['variant'] or 'its best variant'}` against itself, through the gate's own",
        f"processes and rules, budget `{setting['budget']}`, timed: {setting['workload'] or 'single and batch'}.",
        "A slower candidate burns that share of every call's time.",
        "",
        "| candidate | runs | FAIL | PASS | INCONCLUSIVE | rate of FAIL, exact 95 % interval | median time of a run |",
        "|---|---|---|---|---|---|---|",
    ]
    for share in sorted({run["slower"] for run in kept["runs"]}):
        lines.append(_summary(share, [run for run in kept["runs"] if run["slower"] == share]))
    lines += ["", f"Machine {machine['id']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB."]
    versions = ", ".join(f"{name} {version}" for name, version in kept["software"].items())
    lines += [f"Software: {versions}.", "", f"    {command}", "", "## Every run", ""]
    lines += ["| slower | seed | verdict | metric | stage | pairs | change | 95 % interval | half-width |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for run in kept["runs"]:
        for m in run["metrics"]:
            said = (
                f"{m['stage']} | {m['pairs']} | {_percent(m['change'])} | {_percent(m['low'])} to {_percent(m['high'])}"
            )
            width = "∞" if m["half_width"] is None else f"{100 * m['half_width']:.1f} %"
            lines.append(f"| {run['slower']:.0%} | {run['seed']} | {m['status']} | {m['metric']} | {said} | {width} |")
    return "\n".join(lines) + "\n"


def _summary(share: float, runs: list[dict[str, Any]]) -> str:
    count = {status: sum(run["verdict"] == status for run in runs) for status in ("FAIL", "PASS", "INCONCLUSIVE")}
    n, fails = len(runs), count["FAIL"]
    low, high = 1 - rate_bound(n - fails, n, 0.975), rate_bound(fails, n, 0.975)
    who = "the same" if not share else f"{share:.0%} slower"
    figures = f"{count['FAIL']} | {count['PASS']} | {count['INCONCLUSIVE']} | {fails / n:.0%} [{low:.0%}, {high:.0%}]"
    return f"| {who} | {n} | {figures} | {median([run['seconds'] for run in runs]).value:.0f} s |"


def _percent(value: float | None) -> str:
    return "∞" if value is None else f"{100 * value:+.1f} %"


def parsed(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default, rules = Timing(), Rules()
    parser.add_argument("--bundle", required=True, help="NAME.bundle@variant")
    parser.add_argument("--data", help="as for `deploykit gate`")
    parser.add_argument("--budget")
    parser.add_argument("--workload", choices=("single", "batch"), help="time one alone: half the time")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs, to try it out")
    for name in ("seconds", "calls", "warm_seconds", "warm_calls"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--screen", type=int, default=rules.screen)
    parser.add_argument("--confirm", type=int, nargs="+", default=list(rules.confirm))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "gate_operating_curve.json")
    parser.add_argument("--page", type=Path, default=HERE / "gate_operating_curve.md")
    return parser.parse_args(words)


if __name__ == "__main__":
    raise SystemExit(main())
