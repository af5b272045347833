"""Pretraining as the first step of a recipe: it makes the source of all the others, in a folder of its own.

It is no step of the store: the folder is what people keep and look into, and the run goes on from its own checkpoints.
It runs in this process, so that its lines are told as they come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploykit import data
from deploykit.errors import InputError
from deploykit.pipeline.step import Step
from deploykit.pretrain.recipe import PretrainRecipe
from deploykit.recipe import Recipe
from deploykit.sources import Identity, checkpoint

NAME = "pretrain"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """The training that a plan begins with, and whether it is finished."""

    recipe: PretrainRecipe
    finished: bool

    @property
    def step(self) -> Step:
        """How it is shown among the steps."""
        made = self.recipe
        facts = {"objective": made.objective, "encoder": made.encoder, "data": ", ".join(made.data.train)}
        return Step(NAME, "deploykit.pretrain.run:pretrain", made.to_data(), facts=facts)


def of(recipe: Recipe) -> Training | None:
    """The recipe's training. Raises `BusyError` when its folder holds the finished run of another recipe."""
    from deploykit.pretrain import run

    if recipe.pretrain is None:
        return None
    return Training(recipe.pretrain, run.finished(recipe.pretrain) is not None)


def untrained(recipe: PretrainRecipe) -> Identity:
    """What is known of a source that is still to be trained."""
    return Identity(checkpoint.KIND, str(recipe.output), None)


def carry_out(training: Training, tell: Tell) -> str:
    """Train, from the last checkpoint of the same recipe where there is one; returns a sentence on the outcome.

    ``tell`` gets a sentence for every line of the metrics, and for every stage that begins.
    """
    from deploykit.pretrain import run

    begun = time.perf_counter()
    resume = run.can_resume(training.recipe)
    outcome = run.pretrain(training.recipe, resume=resume, on_line=lambda line: tell(line_text(line)), on_stage=tell)
    found = _shown(outcome.card["probes"]["trained"]["held_out"])
    skipped = len(outcome.card["data"]["skipped"])
    parts = [
        str(outcome.folder),
        f"{outcome.card['training']['steps']} steps" + (" (resumed)" if resume else ""),
        *([f"{skipped} unreadable inputs skipped"] if skipped else []),
        f"on held-out data {found}",
    ]
    return f"{'; '.join(parts)} ({time.perf_counter() - begun:.0f} s)"


def line_text(line: Mapping[str, Any]) -> str:
    """One line of the metrics, for people."""
    if "probe" in line:
        return f"probe at step {line['step']}: {_shown(line['probe'])}"
    if "finetune" in line:
        return (
            f"fine-tuning, {line['finetune']}: epoch {line['epoch']:.2f}, step {line['step']} of {line['steps']}, "
            f"loss {line['loss']:.4f}, {line['inputs_per_s']:.0f} inputs/s, lr {line['lr']:.2e}"
        )
    return (
        f"epoch {line['epoch']:.2f}, step {line['step']} of {line['steps']}, loss {line['loss']:.4f}, "
        f"{line['views_per_s']:.0f} views/s, data wait {100 * line['data_wait']:.1f} %, lr {line['lr']:.2e}"
    )


def with_its_data(recipe: Recipe, identity: Identity) -> tuple[Recipe, list[str]]:
    """The recipe calibrated on what its encoder was trained on, unless it names other data; with notes for the user.

    The evaluation set is then what was not calibrated on, as it is for any calibration data.
    """
    if identity.kind != checkpoint.KIND or recipe.calibration.data or recipe.evaluation.data:
        return recipe, []
    specs = checkpoint.trained_on(recipe.source.model)
    there = [spec for spec in specs if _is_there(spec)]
    if not there:
        return recipe, [f"the data that the encoder was trained on are no longer there ({', '.join(specs)})"]
    others = f", the first of {len(specs)} data sets that it was trained on" if len(specs) > 1 else ""
    tested = checkpoint.tested_on(recipe.source.model)
    without = f", without the files for its test ({', '.join(tested)})" if tested else ""
    note = f"calibration and evaluation data: {there[0]}{others}{without}"
    unreadable = max(recipe.calibration.unreadable, checkpoint.unreadable(recipe.source.model))
    chosen = replace(recipe.calibration, data=there[0], unreadable=unreadable, skip=(*recipe.calibration.skip, *tested))
    return replace(recipe, calibration=chosen), [note]


def _is_there(spec: str) -> bool:
    if spec.startswith("builtin:"):
        return True
    try:
        path: Path = data.split(spec)[0]
    except InputError:
        return False
    return path.exists()


def _shown(figures: Mapping[str, Any]) -> str:
    names = {"knn": "kNN {} %", "linear": "linear {} %", "effective_rank": "effective rank {}"}
    alarm = ["WARNING: the embeddings have collapsed"] if figures.get("collapsed") else []
    return ", ".join([text.format(figures[key]) for key, text in names.items() if key in figures] + alarm)
