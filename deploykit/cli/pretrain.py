"""``deploykit pretrain``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deploykit.cli import console
from deploykit.cli.steps import flat

_RECIPE = typer.Argument(metavar="RECIPE", help="A .toml file with a section [pretrain].", show_default=False)
_CHANGES = typer.Argument(
    metavar="[KEY=VALUE]...", help="Keys below [pretrain] to change: training.epochs=3.", show_default=False
)
_RESUME = typer.Option("--resume", help="Go on from the last checkpoint in the recipe's output folder.")
_SHOW = typer.Option("--show-recipe", help="Print the effective recipe, and do nothing else.")


def pretrain(
    recipe: Annotated[Path, _RECIPE],
    changes: Annotated[list[str] | None, _CHANGES] = None,
    resume: Annotated[bool, _RESUME] = False,
    show_recipe: Annotated[bool, _SHOW] = False,
    json: console.Json = False,
) -> None:
    """Train an encoder on unlabelled data.

    The output folder is a source for `deploykit export`. Also runs under torchrun and `accelerate launch`.

    Example: deploykit pretrain recipes/pretrain-digits.toml training.epochs=5
    """
    from deploykit import settings
    from deploykit.pretrain import run
    from deploykit.pretrain.recipe import PretrainRecipe

    chosen = PretrainRecipe.from_toml(recipe, changes or ())
    if os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        run.pretrain(chosen, resume=resume)
        return
    if show_recipe:
        if json:
            console.print_json({"pretrain": chosen.to_data()})
        else:
            typer.echo(settings.dumps({"pretrain": chosen.to_data()}), nl=False)
        return
    console.say_settings("settings", flat(chosen.to_data()))
    with console.Progress() as progress:

        def tell(line: dict[str, Any]) -> None:
            progress.clear()
            console.say(_line(line))
            progress.begin(f"step {line['step']}")

        def begin(stage: str) -> None:
            progress.clear()
            console.say(f"  {stage}")
            progress.begin(stage)

        outcome = run.pretrain(chosen, resume=resume, on_line=tell, on_stage=begin)
    if json:
        console.print_json({"folder": outcome.folder, "unchanged": outcome.unchanged, "card": outcome.card})
        return
    if outcome.unchanged:
        typer.echo("nothing to do: this run is finished")
    typer.echo(_table(outcome.card["probes"]))
    for name, row in outcome.card.get("finetuned", {}).items():
        typer.echo(f"fine-tuned, {name}: {_finetuned(row)}")
    for text in outcome.card["data"]["skipped"]:
        console.say(f"skipped: {text}")
    if outcome.card["probes"]["trained"]["held_out"].get("collapsed"):
        console.say("warning: the embeddings have collapsed: their effective rank is below probe.rank_alarm")
    seconds = [outcome.card.get(part, {}).get("seconds", 0.0) for part in ("training", "judging")]
    typer.echo(f"encoder: {outcome.folder} (trained in {seconds[0]:.0f} s, judged in {seconds[1]:.0f} s)")


def _line(line: Mapping[str, Any]) -> str:
    if "probe" in line:
        figures = "  ".join(f"{key} {value}" for key, value in line["probe"].items())
        alarm = "  WARNING: the embeddings have collapsed" if line["probe"].get("collapsed") else ""
        return f"  probe at step {line['step']}: {figures}{alarm}"
    if "finetune" in line:
        return (
            f"  fine-tuning, {line['finetune']}: epoch {line['epoch']:.2f}  step {line['step']}/{line['steps']}  "
            f"loss {line['loss']:.4f}  {line['inputs_per_s']:.0f} inputs/s  lr {line['lr']:.2e}"
        )
    parts = "".join(f"  {name} {value:.4f}" for name, value in line["parts"].items())
    return (
        f"  epoch {line['epoch']:.2f}  step {line['step']}/{line['steps']}  loss {line['loss']:.4f}{parts}  "
        f"{line['views_per_s']:.0f} views/s  data wait {100 * line['data_wait']:.1f} %  lr {line['lr']:.2e}"
    )


def _finetuned(row: Mapping[str, Any]) -> str:
    parts = {"held_out": "held-out part", "test": "test data"}
    told = [f"{row[k]['accuracy']} % of the {text} (n {row[k]['n']})" for k, text in parts.items() if k in row]
    return f"{', '.join(told)}, after {row['steps']} steps"


def _table(probes: Mapping[str, Any]) -> str:
    from deploykit.report.terminal import table

    rows = []
    for name, parts in probes.items():
        for part, figures in parts.items():
            if figures:
                cells = [figures.get(k, "") for k in ("knn", "linear", "spearman", "effective_rank", "n")]
                rows.append((name, part.replace("_", " "), *map(str, cells)))
    return table(("encoder", "judged on", "kNN %", "linear %", "Spearman", "effective rank", "n"), rows)
