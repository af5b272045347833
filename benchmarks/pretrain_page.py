"""The page of ``benchmarks/pretrain.py``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def markdown(result: Mapping[str, Any]) -> str:
    """One table of what was judged, one of time, one of int8."""
    rows = result["rows"]
    machines = {row["machine"]["id"]: row["machine"] for row in rows}.values()
    return "\n".join(
        [
            "# Pretraining",
            "",
            "Written by the command below. Nothing here was trained on labels, but the row that says so; the test data "
            "were asked once, at the end.",
            "",
            f"- **Machines** {'; '.join(map(_described, machines))}; the column *hw* has the first letters of the id",
            "- **Command** `python benchmarks/pretrain.py` with `DEPLOYKIT_DATA`; each run is "
            "`deploykit pretrain recipes/RECIPE.toml` with the keys that name its data",
            f"- **Versions** {', '.join(f'{name} {number}' for name, number in result['software'].items())}",
            "- **kNN, linear** accuracy on the test data in percent: 20 neighbours, and ridge regression in closed "
            "form. **Spearman** x 100 of scored pairs. *random*: the same encoder untrained; *raw*: pixels, mean "
            "log-mel frames or shares of hashed word pieces, with the same probes",
            "",
            "| run | recipe | kNN | random | raw | linear or Spearman | random | raw | n | hw |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *(_judged(row) for row in rows if not row["supervised"]),
            *_supervised(rows),
            *_starts(rows),
            *_told(rows),
            "",
            "## What it takes",
            "",
            "The whole command: reading, training and judging. *computing*: seconds of all threads together. With a *, "
            "other jobs ran beside it.",
            "",
            "| run | steps | seconds | computing | data wait | hw |",
            "|---|---|---|---|---|---|",
            *(_time(row) for row in rows),
            *_speed(result.get("speed", [])),
            "",
            "## After int8",
            "",
            "The linear probe (or Spearman) of the exported encoder: fitted to the fp32 vectors of the same engine for "
            "20,000 inputs at most, asked of its int8 vectors for 4,000 test inputs at most.",
            "",
            "| run | variant | fp32 | int8 | change | n | hw |",
            "|---|---|---|---|---|---|---|",
            *(line for row in rows for line in _int8(row)),
            "",
        ]
    )


def _described(machine: Mapping[str, Any]) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores, hardware id {machine['id']}"


def _hw(row: Mapping[str, Any]) -> str:
    return str(row["machine"]["id"])[:4]


def _judged(row: Mapping[str, Any]) -> str:
    test = {name: figures["test"] for name, figures in row["probes"].items()}
    main = "spearman" if "spearman" in test["trained"] else "linear"
    cells = [_cell(test[name].get("knn")) for name in ("trained", "random initialisation", "raw input")]
    cells += [_cell(test[name].get(main)) for name in ("trained", "random initialisation", "raw input")]
    cells[0], cells[3] = _bold(cells[0]), _bold(cells[3])
    return f"| {row['name']} | {row['recipe']} | {' | '.join(cells)} | {test['trained']['n']:,} | {_hw(row)} |"


def _supervised(rows: list[Mapping[str, Any]]) -> list[str]:
    """What labels bring in the same time, and the share of it that came without."""
    lines = []
    for row in (row for row in rows if row["supervised"]):
        ceiling = row["finetuned"]["random initialisation"]["test"]
        told = f"The same encoder trained on the labels, {row['seconds']:,.0f} s in all: "
        told += f"{ceiling['accuracy']:.2f} % (n {ceiling['n']:,}). "
        alike = (r for r in rows if (r["recipe"], r["machine"]) == (row["recipe"], row["machine"]))
        same = next((r for r in alike if not r["supervised"]), None)
        if same is not None:
            share = same["probes"]["trained"]["test"]["linear"] / ceiling["accuracy"]
            told += f"Without labels the linear probe of {same['name']} reaches {share:.0%} of that."
        lines += ["", told]
    return lines


def _starts(rows: list[Mapping[str, Any]]) -> list[str]:
    """Where a run went on from another one's encoder: what it began with."""
    lines = []
    for row in (row for row in rows if "start" in row["probes"]):
        start, end = (row["probes"][name]["test"] for name in ("start", "trained"))
        change = f"{start['spearman']:.2f} to {end['spearman']:.2f} (n {end['n']:,} pairs)"
        lines += ["", f"{row['name']} begins with another run's encoder and takes its Spearman from {change}."]
    return lines


def _told(rows: list[Mapping[str, Any]]) -> list[str]:
    """How often the encoder told real from generated, over the second half of the training."""
    lines = []
    for row in rows:
        told = [100 * value for value in row["told"] if value is not None]
        told = told[len(told) // 2 :]
        if told:
            lines.append(f"{row['name']} {min(told):.0f} to {max(told):.0f} %")
    if not lines:
        return []
    return [
        "",
        f"Real told from generated (balanced, second half of the training, every log line): {', '.join(lines)}.",
    ]


def _time(row: Mapping[str, Any]) -> str:
    steps = f"{row['training']['steps']:,}"
    if row["supervised"]:
        steps = f"{row['finetuned']['random initialisation']['steps']:,} with labels"
    beside = " *" if row.get("loaded") else ""
    seconds = f"{row['seconds']:,.0f}{beside} | {row['cpu_seconds']:,.0f}"
    waited = "–" if row["supervised"] else f"{100 * row['data_wait']:.1f} %"  # its one step says nothing
    return f"| {row['name']} | {steps} | {seconds} | {waited} | {_hw(row)} |"


def _speed(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """What bfloat16 brings."""
    if not measured:
        return []
    return [
        "",
        "Training in either precision, in turns: the ResNet of pretrain-cifar10 on *quarters*, views of 16 x 16 pixels "
        "as in the recipe, and on *whole* pictures of 32 x 32; the ViT of pretrain-cifar10-predict on *patches*. "
        "Medians of n runs; the ratio with its interval.",
        "",
        "| on | bfloat16, views/s | float32, views/s | times as fast | n | hw |",
        "|---|---|---|---|---|---|",
        *(_rate(row) for row in measured),
    ]


def _rate(row: Mapping[str, Any]) -> str:
    bf16, fp32 = (f"{statistics.median(row['views_per_s'][name]):,.0f}" for name in ("bf16", "fp32"))
    ratio = row["ratio"]
    times = f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}], {ratio['confidence']:.0%}"
    return f"| {row['name']} | {bf16} | {fp32} | {times} | {ratio['n']} | {_hw(row)} |"


def _int8(row: Mapping[str, Any]) -> list[str]:
    return [
        f"| {row['name']} | {name} | {f['fp32']:.2f} | {f['int8']:.2f} | {f['int8'] - f['fp32']:+.2f} | {f['n']:,} | "
        f"{_hw(row)} |"
        for name, f in row.get("int8", {}).items()
    ]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _bold(cell: str) -> str:
    return cell if cell == "–" else f"**{cell}**"
