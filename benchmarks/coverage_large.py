"""Models of real size, without their weights: exported and proven once, with time and peak memory.

Five encoders at the size that they are used at, randomly initialised, and one synthetic model of 2.1 GB, whose weights
do not fit into one protobuf and stand beside the graph. Each is saved as a user has it and exported by the command line
into an empty store, so that nothing is reused; what is measured is that command and every process that it starts.

    python benchmarks/coverage_large.py                              # all, on onnxruntime
    python benchmarks/coverage_large.py --only bert-base             # one; the other rows stay as they are
    python benchmarks/coverage_large.py --target onnxruntime --target openvino
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.coverage_models import Architecture, save  # noqa: E402

_POLL_S = 0.05
_CLIP_SIZE = {"size": {"height": 224, "width": 224}}
_WAVES = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
_SIGLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = (
    Architecture("bert-base", "text", "BertConfig", {}, export={"max-length": 512}),
    Architecture(
        "vit-b-16", "image", "ViTConfig", {}, processor={"image_processor_type": "ViTImageProcessor", **_CLIP_SIZE}
    ),
    Architecture(
        "convnext-t",
        "image",
        "ConvNextConfig",
        {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768], "image_size": 224},
        processor={"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
    ),
    Architecture("wav2vec2-base", "audio", "Wav2Vec2Config", {}, processor=_WAVES, export={"max-length": 160000}),
    Architecture(
        "siglip-b-vision",
        "image",
        "SiglipVisionConfig",
        {**_SIGLIP, "image_size": 224, "patch_size": 16},
        processor={"image_processor_type": "SiglipImageProcessor", **_CLIP_SIZE},
    ),
)
SYNTHETIC = "synthetic-2.1-gb"
"""Four matrices of 4,096 x 32,768 float32, 0.54 GB each, from a Python factory."""

_FACTORY = """
import torch

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sides = (4096, 32768, 4096, 32768, 4096)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b, bias=False) for a, b in zip(sides, sides[1:]))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

def wide():
    return Wide(), (torch.randn(3, 4096),)
"""


@dataclass
class Peak:
    """The most memory that a process and its descendants held at once, and how it was spread over them, in MiB."""

    total: int = 0
    spread: dict[str, int] | None = None


def main() -> None:
    """Measure what was asked for, then write the JSON and the page."""
    asked = _arguments()
    path = HERE / "results" / "coverage_large.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}
    for name in asked.only or [*(entry.name for entry in LARGE), SYNTHETIC]:
        row = measure(name, asked.target or ["onnxruntime"], asked.scratch)
        result["rows"][name] = row
        print(f"{name:18} {_sentence(row)}", flush=True)
        path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (HERE / "coverage_large.md").write_text(markdown(result), encoding="utf-8")


def measure(name: str, targets: Sequence[str], scratch: Path | None) -> dict[str, Any]:
    """Make the model, export it once, and return its row."""
    from deploykit.measure import fingerprint

    folder = Path(tempfile.mkdtemp(prefix="coverage-large-", dir=scratch))
    try:
        source, options, weights = _make(name, folder)
        words = [sys.executable, "-m", "deploykit", "export", source, "-o", str(folder / "made.bundle"), "--json"]
        words += [word for target in targets for word in ("-t", target)] + options
        begun = time.perf_counter()
        load = os.getloadavg()[0]
        code, out, log, peak = _watched(words, {**os.environ, "DEPLOYKIT_STORE": str(folder / "store")})
        seconds = time.perf_counter() - begun
        return {
            "command": "deploykit export " + " ".join([name, *options, *(f"-t {target}" for target in targets)]),
            "weights_mib": round(weights / 2**20),
            "seconds": round(seconds, 1),
            "proof_seconds": round(sum(_step_seconds(folder / "store")), 1),
            "peak_mib": peak.total,
            "peak_spread_mib": peak.spread,
            "load_before": round(load, 1),
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "external_data": any((folder / "made.bundle" / "models").glob("*.data")),
            **_outcome(code, out, log),
            "machine": fingerprint.machine(),
            "software": fingerprint.software(),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tree_mib(root: int) -> dict[str, int]:
    """Resident MiB of a process and its descendants, by step of the export; shared pages count in each of them."""
    parents, resident = {}, {}
    page = os.sysconf("SC_PAGE_SIZE")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                resident[int(entry.name)] = int((entry / "statm").read_text().split()[1]) * page
            except (OSError, IndexError, ValueError):
                continue  # it has ended meanwhile
    found: dict[str, int] = {}
    for process in resident:
        above = process
        while above not in (root, 0, 1) and above in parents:
            above = parents[above]
        if above == root:
            name = _step(process)
            found[name] = found.get(name, 0) + resident[process] // 2**20
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The page: one line for each model."""
    lines = [
        "# Models of real size",
        "",
        "Written by `python benchmarks/coverage_large.py`. Randomly initialised, exported by the command line into an",
        "empty store. *proven*: every batch size and size of the dynamic axes agrees with torch on each engine. Peak",
        "memory is the largest sum of the resident memory of the command and all its processes at one moment, sampled",
        f"every {_POLL_S * 1000:.0f} ms; pages that two of them share count twice. *export and proof* are the seconds",
        "of those steps; the rest is the start, the timing of the variants and the self-test of the bundle. One run",
        "each: times have no interval.",
        "",
        "| model | weights, MiB | engines | seconds | export and proof | peak MiB | proven | load before | hw |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        proven = ", ".join(row["proven"]) or f"no: {row['why']}"
        kept = f"{row['weights_mib']:,}{', beside the graph' if row['external_data'] else ''}"
        engines = " ".join(word for word in row["command"].split() if word in ("onnxruntime", "openvino"))
        figures = f"{row['seconds']:.0f} | {row['proof_seconds']:.0f} | {row['peak_mib']:,}"
        lines.append(
            f"| {name} | {kept} | {engines} | {figures} | {proven} | {row['load_before']} | {row['machine']['id']} |"
        )
    return "\n".join(lines) + "\n"


def _make(name: str, folder: Path) -> tuple[str, list[str], int]:
    """The source's spec, the options of its export, and the bytes of its weights; nothing of it stays in memory."""
    if name == SYNTHETIC:
        (folder / "wide.py").write_text(_FACTORY, encoding="utf-8")
        return f"py:{folder / 'wide.py'}:wide", [], 4 * 4096 * 32768 * 4
    entry = next(entry for entry in LARGE if entry.name == name)
    place = folder / name
    process = os.fork()
    if process == 0:  # in a process of its own, whose memory goes with it
        code = 1
        try:
            save(entry, place)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise SystemExit(f"{name} could not be made")
    options = [word for key, value in entry.export.items() for word in (f"--{key}", str(value))]
    return str(place), options, (place / "model.safetensors").stat().st_size


def _step_seconds(store: Path) -> list[float]:
    """How long the steps took that export and prove: all but those that time the variants and write the bundle."""
    found = []
    for path in sorted((store / "artifacts").glob("*/artifact.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "latency" not in record["metadata"]:
            found.append(float(record["metadata"].get("run", {}).get("seconds", 0.0)))
    return found


def _watched(words: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str, Peak]:
    """Run a command; exit code, stdout, stderr and the peak memory of all its processes."""
    process = subprocess.Popen(words, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            spread = tree_mib(process.pid)
            if sum(spread.values()) > peak.total:
                peak.total, peak.spread = sum(spread.values()), spread

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        out, log = process.communicate()
    finally:
        over.set()
        watching.join()
    return process.returncode, out, log, peak


def _step(process: int) -> str:
    """Which step of the export a process carries out."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")
        requests = [word for word in words if word.endswith("request.json")]
        return str(json.loads(Path(requests[0]).read_text(encoding="utf-8"))["step"]) if requests else "command"
    except (OSError, ValueError):
        return "command"


def _outcome(code: int, out: str, log: str) -> dict[str, Any]:
    """Which variants were proven, and why others were not."""
    try:
        told = json.loads(out)
    except ValueError:
        told = {}
    refused = [f"{item['variant']}: {item['reason']}" for item in told.get("refused", [])]
    last = [line for line in log.splitlines() if "error" in line] or log.splitlines()[-1:]
    why = "; ".join(refused) or ("" if code == 0 else " ".join(last)[:500])
    return {"code": code, "proven": [variant["name"] for variant in told.get("variants", [])], "why": why}


def _sentence(row: Mapping[str, Any]) -> str:
    proven = ", ".join(row["proven"]) or f"not proven: {row['why']}"
    return f"{row['seconds']:7.1f} s  {row['peak_mib']:6,} MiB  {proven}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(entry.name for entry in LARGE), SYNTHETIC]
    parser.add_argument("--only", nargs="*", choices=names, metavar="NAME", help="these models")
    parser.add_argument("--target", action="append", choices=("onnxruntime", "openvino"), help="an engine; repeatable")
    parser.add_argument("--scratch", type=Path, help="folder for models and stores; it needs up to 12 GB")
    return parser.parse_args()


if __name__ == "__main__":
    main()
