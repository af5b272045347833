"""What pretraining brings on real data: every recipe trained, judged, quantized and judged again.

::

    python benchmarks/pretrain.py                     # all of them, one after the other
    python benchmarks/pretrain.py --only fsdd text    # some; DEPLOYKIT_DATA names the folder of the data
    python benchmarks/pretrain.py --speed             # bfloat16 beside float32, in turns

Each is the recipe's own command in a process of its own, timed from start to end, judging and all; its encoder is then
exported for both CPU engines, and a linear probe fitted to the fp32 vectors judges the int8 ones. A row is written to
``FOLDER/NAME.json`` when it is done, and what has a row is not run again. Page and figures: ``pretrain.md`` and
``results/pretrain.json``, where rows of other machines stay; a row that was timed beside other jobs is marked there by
hand (``"loaded": true``).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import pretrain_page, results  # noqa: E402

_LEARNT, _ASKED = 20_000, 4_000
"""Inputs at most that a probe of the int8 vectors learns from, and is asked."""
_ROUNDS = 5


@dataclass(frozen=True)
class Experiment:
    """A recipe, and the keys that name the data; ``DATA`` in them is the folder of the data, ``OUT`` that of the runs.

    ``supervised``: the row of interest is the fine-tuned untrained encoder. ``lowered``: int8 is judged too.
    """

    recipe: str
    changes: tuple[str, ...] = ()
    supervised: bool = False
    lowered: bool = True


_CIFAR = (
    'data.train=["DATA/cifar10-jpeg/train.parquet#image=img,label=label"]',
    "data.test=DATA/cifar10-jpeg/test.parquet#image=img,label=label",
)
_FSDD = ('data.train=["DATA/fsdd/"]',)
_THEO = ('data.test_names=["*_theo_*"]',)
_WIKI = '"DATA/wikitext2/valid.txt", "DATA/wikitext2/test.txt"'
_TEXT = (
    f'data.train=[{_WIKI}, "DATA/sst2/train_full.tsv#sentence"]',
    "data.probe=DATA/sst2/train_full.tsv#text=sentence,label=label",
    "data.test=DATA/sst2/dev.tsv#text=sentence,label=label",
)
_STS = (
    "start=OUT/text",
    f'data.train=["DATA/stsb/sts-train.csv#6", "DATA/stsb/sts-train.csv#7", {_WIKI}]',
    "data.probe=DATA/stsb/sts-train.csv#a=6,b=7,score=5",
    "data.test=DATA/stsb/sts-dev.csv#a=6,b=7,score=5",
)
_LABELS = (
    "training.steps=1",
    "finetune.begin=untrained",
    "finetune.epochs=5",
    "finetune.lr=3e-3",
    "finetune.precision=auto",
    "modality.view_size=0",  # what serves learning from labels: whole pictures, and little that is done to them
    "modality.crop_min=0.5",
    "modality.crop_max=1.0",
    "modality.jitter=0.2",
    "modality.grey=0.0",
)
EXPERIMENTS = {
    "digits": Experiment("pretrain-digits"),
    "digits-predict": Experiment("pretrain-digits-predict"),
    "digits-adversarial": Experiment("pretrain-digits-adversarial"),
    "fsdd": Experiment("pretrain-fsdd", _FSDD),
    "fsdd-theo": Experiment("pretrain-fsdd", (*_FSDD, *_THEO)),
    "fsdd-predict": Experiment("pretrain-fsdd-predict", _FSDD),
    "fsdd-predict-theo": Experiment("pretrain-fsdd-predict", (*_FSDD, *_THEO)),
    "fsdd-adversarial": Experiment("pretrain-fsdd-adversarial", _FSDD),
    "text": Experiment("pretrain-text", _TEXT),
    "text-match": Experiment("pretrain-text-match", _STS),
    "text-adversarial": Experiment("pretrain-text-adversarial", _TEXT),
    "cifar10": Experiment("pretrain-cifar10", _CIFAR),
    "cifar10-long": Experiment("pretrain-cifar10", (*_CIFAR, "training.steps=2000")),
    "cifar10-labels": Experiment("pretrain-cifar10", (*_CIFAR, *_LABELS), supervised=True, lowered=False),
    "cifar10-predict": Experiment("pretrain-cifar10-predict", _CIFAR),
    "cifar10-adversarial": Experiment("pretrain-cifar10-adversarial", _CIFAR),
}
SPEEDS = {
    "quarters": ("pretrain-cifar10", ()),
    "whole": ("pretrain-cifar10", ("modality.view_size=0", "training.batch=64")),
    "patches": ("pretrain-cifar10-predict", ()),
}
"""Recipes and changes: a ResNet on views of a quarter of the picture, as it stands, and on whole ones; a ViT."""


def main() -> None:
    """Run what has no row yet, then write the page."""
    asked = _arguments()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.speed:
        for name in (name for name in SPEEDS if not (asked.folder / f"speed-{name}.json").exists()):
            _write(asked.folder / f"speed-{name}.json", speed(name, asked.folder, asked.data))
    elif not asked.page:
        for name in asked.only or EXPERIMENTS:
            one(name, asked.folder, asked.data)
    publish(asked.folder, HERE / "results" / "pretrain.json", HERE / "pretrain.md")


def publish(folder: Path, figures: Path, page: Path) -> None:
    """Add the rows of ``folder`` to the ``figures``, in the place of the same machine's older ones; write the page."""
    from deploykit.measure import fingerprint

    before = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {"rows": [], "speed": []}
    result = {"software": fingerprint.software()}
    for kind, files in {"rows": {n: n for n in EXPERIMENTS}, "speed": {n: f"speed-{n}" for n in SPEEDS}}.items():
        found = {(r["name"], r["machine"]["id"]): r for r in [*before[kind], *_read(folder, files.values())]}
        result[kind] = sorted(found.values(), key=lambda row, order=list(files): order.index(row["name"]))
    _write(figures, result)
    page.write_text(pretrain_page.markdown(result), encoding="utf-8")


def one(name: str, folder: Path, data: str) -> None:
    """Train, judge, lower and judge one experiment, as far as that was not done before."""
    experiment, path, output = EXPERIMENTS[name], folder / f"{name}.json", folder / name
    changes = [change.replace("DATA", data).replace("OUT", str(folder)) for change in experiment.changes]
    if path.exists():
        row = json.loads(path.read_text(encoding="utf-8"))
    else:
        row = {"name": name, "recipe": experiment.recipe, "supervised": experiment.supervised, "machine": _machine()}
        row |= {**train(experiment.recipe, [*changes, f"output={output}"]), **facts(output)}
        _write(path, row)
    if experiment.lowered and "int8" not in row:
        _write(path, {**row, "int8": lowered(experiment.recipe, changes, output, folder / f"{name}.bundle")})


def facts(output: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    card = json.loads((output / "card.json").read_text(encoding="utf-8"))
    lines = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [line for line in lines if "parts" in line]  # the others are probes
    return {
        **{key: card[key] for key in ("probes", "training")},
        "finetuned": card.get("finetuned", {}),
        "data_wait": sum(line["data_wait"] for line in steps) / len(steps),
        "told": [line["parts"].get("told") for line in steps],
    }


def train(recipe: str, changes: Sequence[str]) -> dict[str, Any]:
    """The recipe's command in a process of its own: seconds by the wall clock and of computing."""
    path = HERE.parent / "recipes" / f"{recipe}.toml"
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "deploykit", "pretrain", str(path), *changes], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(cpu, 1)}


def lowered(recipe: str, changes: Sequence[str], encoder: Path, bundle: Path) -> dict[str, Any]:
    """The encoder on both CPU engines in int8, calibrated on what it was trained on, judged like its fp32 vectors."""
    import deploykit
    from deploykit.pretrain import inputs
    from deploykit.pretrain.recipe import PretrainRecipe

    chosen = PretrainRecipe.from_toml(HERE.parent / "recipes" / f"{recipe}.toml", changes)
    options = chosen.data
    trained, tested = inputs.fits(options.test_names, answer=False), inputs.fits(options.test_names)
    learnt = [options.probe] if options.probe else list(options.train)
    asked = [options.test] if options.test else list(options.train)
    bank = inputs.read(learnt, chosen.modality, _LEARNT, options.names, trained)
    query = inputs.read(asked, chosen.modality, _ASKED, options.names, tested)
    deploykit.export(
        encoder,
        output=bundle,
        targets=["onnxruntime", "openvino"],
        precisions=["fp32", "int8"],
        budget="none",
        report=False,
    )
    sets = {}
    for variant in [v.name for v in deploykit.Bundle.open(bundle).manifest.variants]:
        with deploykit.load(bundle, variant=variant) as loaded:
            sets[variant] = (loaded.encode(bank.inputs), loaded.encode(query.inputs))
    return judged(sets, bank, query)


def judged(sets: Mapping[str, tuple[Any, Any]], bank: Any, query: Any) -> dict[str, Any]:
    """For each int8 variant the figure of its engine's fp32 vectors and its own: % right, or Spearman x 100."""
    import torch

    from deploykit.pretrain import probe

    tensors = {name: tuple(map(torch.from_numpy, pair)) for name, pair in sets.items()}
    found = {}
    for name in (name for name in tensors if name.endswith("int8")):
        base, own = tensors[name.replace("int8", "fp32")], tensors[name]
        if query.pairs:
            figures = [100 * probe.spearman(vectors, query.pairs) for vectors in (base[1], own[1])]
        else:
            classes = sorted(set(map(str, bank.labels)))
            labels, truth = (torch.tensor([classes.index(str(x)) for x in s.labels]) for s in (bank, query))
            plane = probe.linear(base[0], labels, (1e-4, 1e-3, 1e-2, 1e-1, 1.0))
            figures = [100 * float((plane.classes(v) == truth).float().mean()) for v in (base[1], own[1])]
        count = len(query.pairs or query.inputs)
        found[name] = {"fp32": round(figures[0], 2), "int8": round(figures[1], 2), "n": count}
    return found


def speed(name: str, folder: Path, data: str) -> dict[str, Any]:
    """Views per second of a CIFAR-10 recipe in either precision, ``_ROUNDS`` short runs of each in turns."""
    found: dict[str, list[float]] = {"fp32": [], "bf16": []}
    recipe, own = SPEEDS[name]
    changes = [change.replace("DATA", data) for change in (*_CIFAR, *own)]
    changes += ["data.test=", "data.limit=2000", "probe.samples=500", "training.steps=30", "training.log_every=10"]
    for _ in range(_ROUNDS):
        for precision, rates in found.items():
            with tempfile.TemporaryDirectory(dir=folder) as output:
                train(recipe, [*changes, f"training.precision={precision}", f"output={output}/run"])
                lines = map(json.loads, (Path(output) / "run" / "metrics.jsonl").read_text("utf-8").splitlines())
                rates.append(statistics.mean([line["views_per_s"] for line in lines if "parts" in line][1:]))
    ratio = results.ratio(found["bf16"], found["fp32"])
    return {"name": name, "machine": _machine(), "views_per_s": found, "ratio": ratio}


def _machine() -> dict[str, Any]:
    from deploykit.measure import fingerprint

    return fingerprint.machine()


def _read(folder: Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """The rows that are there."""
    paths = [folder / f"{name}.json" for name in names]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def _write(path: Path, data: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), help="these experiments")
    parser.add_argument("--folder", type=Path, default=Path("build/pretrain"), help="where runs and rows are")
    parser.add_argument("--speed", action="store_true", help="time bfloat16 beside float32 instead")
    parser.add_argument("--page", action="store_true", help="write the page from the rows that are there")
    asked = parser.parse_args()
    asked.data, asked.folder = os.environ.get("DEPLOYKIT_DATA", ""), asked.folder.resolve()
    if not asked.page and not asked.data:
        parser.error(
            "DEPLOYKIT_DATA is not set: it names the folder with cifar10-jpeg/, fsdd/, sst2/, stsb/, wikitext2/"
        )
    asked.data = str(Path(asked.data).resolve())
    return asked


if __name__ == "__main__":
    main()
