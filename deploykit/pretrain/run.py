"""One pretraining run, from data to a folder that ``deploykit export`` takes.

::

    output/  last.safetensors      the state to go on from          card.json            what the encoder is
             metrics.jsonl         a line every so many steps       encoder.safetensors  its weights
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import BusyError, RecipeError
from deploykit.pretrain.recipe import PretrainRecipe, piece

if TYPE_CHECKING:
    from torch import nn

    from deploykit.pretrain.inputs import Held
    from deploykit.pretrain.judge import Judge

CARD = "card.json"
WEIGHTS = "encoder.safetensors"
FORMAT = "deploykit.pretrain/1"


@dataclass(frozen=True)
class Outcome:
    """The run's folder and its card; ``unchanged``: it had been finished before, and nothing was done."""

    folder: Path
    card: Mapping[str, Any]
    unchanged: bool = False


def pretrain(
    recipe: PretrainRecipe, *, resume: bool = False, on_line: Callable[[dict[str, Any]], None] | None = None
) -> Outcome:
    """Carry out a recipe. ``resume`` goes on from the last checkpoint of its folder; ``on_line`` gets every metric.

    Raises `BusyError` when the folder holds another run, `InputError` and `RecipeError` for what cannot be trained
    on, `CheckError` when the loss is no longer a number.
    """
    import torch

    from deploykit.pretrain import checkpoint, trainer

    finished = _finished(recipe)
    if finished is not None:
        return finished
    state = _begin(recipe, resume)
    accelerator = trainer.make_accelerator(recipe.training)
    adapter, held, digest = _data(recipe, {} if state is None else state.facts)
    trained, judge = _split(recipe, adapter, held)
    torch.manual_seed(recipe.seed)
    encoder = piece("encoder", recipe.encoder).build(adapter.space, recipe.options["encoder"])
    objective = piece("objective", recipe.objective)
    task = objective.build(adapter.space, encoder, recipe.options["objective"])
    untrained = copy.deepcopy(encoder)
    count = objective.views(recipe.options["objective"])
    job = trainer.Job(
        task=task,
        encoder=encoder,
        held=trained.tensors,
        views=lambda rows, draws: adapter.views(rows, count, draws) if count else [adapter.clean(rows)],
        views_per_sample=count,
        options=recipe.training,
        seed=recipe.seed,
        folder=recipe.output,
        facts=adapter.facts,
        judge=lambda e, step: judge.figures(e),
        judge_every=recipe.probe.every,
        on_line=on_line,
    )
    _check_split(recipe, accelerator.num_processes)
    figures = trainer.fit(job, accelerator, state is not None)
    card = {
        **_facts(recipe, adapter, held, digest),
        "training": {**figures, "device": str(accelerator.device), "processes": accelerator.num_processes},
        "probes": _probes(judge, encoder, untrained.to(accelerator.device)),
    }
    if accelerator.is_main_process:
        tensors = dict(encoder.state_dict())
        checkpoint.write_tensors(recipe.output / WEIGHTS, tensors, {"format": FORMAT})
        write_json(recipe.output / CARD, card)
    accelerator.wait_for_everyone()
    return Outcome(recipe.output, card)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Plain data, atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _finished(recipe: PretrainRecipe) -> Outcome | None:
    """The outcome of the same recipe's finished run in its folder, over the same data."""
    path = recipe.output / CARD
    if not path.exists():
        return None
    card = json.loads(path.read_text(encoding="utf-8"))
    if card.get("recipe") == recipe.to_data() and card["data"]["digest"] == _digest(recipe):
        return Outcome(recipe.output, card, unchanged=True)
    raise BusyError(
        f"{recipe.output} holds the finished run of another recipe", hint="choose another output, or remove the folder"
    )


def _digest(recipe: PretrainRecipe) -> str:
    from deploykit.data import digests

    return "+".join(digests.of(spec) for spec in recipe.data.train)


def _begin(recipe: PretrainRecipe, resume: bool) -> Any:
    """Make the folder, or read the state to go on from."""
    from deploykit.pretrain import checkpoint

    path = recipe.output / checkpoint.NAME
    if resume:
        return checkpoint.load(path)
    if path.exists():
        hint = "go on with --resume, choose another output, or remove the folder"
        raise BusyError(f"{recipe.output} holds an unfinished run", hint=hint)
    recipe.output.mkdir(parents=True, exist_ok=True)
    (recipe.output / "metrics.jsonl").unlink(missing_ok=True)
    return None


def _data(recipe: PretrainRecipe, facts: Mapping[str, Any]) -> tuple[Any, Held, str]:
    from deploykit.pretrain import inputs

    given = inputs.read(recipe.data.train, recipe.modality, recipe.data.limit)
    module, options = piece("modality", recipe.modality), recipe.options["modality"]
    adapter = module.Adapter(options, dict(facts)) if facts else module.Adapter.fit(options, given.inputs, recipe.seed)
    return adapter, inputs.hold(adapter, given, recipe.data), given.digest


def _split(recipe: PretrainRecipe, adapter: Any, held: Held) -> tuple[Held, Judge]:
    """What is trained on, and the judge: of the held-out part of the probe's data, or of the training data."""
    from deploykit.pretrain import inputs
    from deploykit.pretrain.judge import Judge

    options = recipe.data
    if options.probe:
        given = inputs.read([options.probe], recipe.modality, options.limit)
        labelled = inputs.hold(adapter, given, options)
        kept, asked = inputs.split(len(labelled), options.holdout, recipe.seed)
        trained = held
    else:
        labelled = held
        kept, asked = inputs.split(len(held), options.holdout, recipe.seed)
        trained = held.rows(kept)
    bank = labelled.rows(kept[: recipe.probe.samples])
    test = None
    if options.test:
        given = inputs.read([options.test], recipe.modality, 0)
        test = inputs.hold(adapter, given, options, labelled.classes)
    return trained, Judge(adapter, bank, labelled.rows(asked[: recipe.probe.samples]), test, recipe.probe)


def _check_split(recipe: PretrainRecipe, processes: int) -> None:
    parts = recipe.training.accumulate * processes
    if recipe.training.batch % parts or recipe.training.batch // parts < 1:
        raise RecipeError(
            f"training.batch {recipe.training.batch} does not divide into {parts} equal parts",
            hint="make it a multiple of accumulate times the number of processes",
        )


def _probes(judge: Judge, encoder: nn.Module, untrained: nn.Module) -> dict[str, Any]:
    rows = {"trained": encoder, "random initialisation": untrained, "raw input": None}
    return {name: {"held_out": judge.figures(e), "test": judge.final(e)} for name, e in rows.items()}


def _facts(recipe: PretrainRecipe, adapter: Any, held: Held, digest: str) -> dict[str, Any]:
    from deploykit.settings import plain

    return {
        "format": FORMAT,
        "name": recipe.output.name,
        "modality": {"name": recipe.modality, "options": plain(recipe.options["modality"]), "facts": adapter.facts},
        "encoder": {"name": recipe.encoder, "options": plain(recipe.options["encoder"])},
        "pooling": piece("encoder", recipe.encoder).POOLING,
        "objective": {"name": recipe.objective, **plain(recipe.options["objective"])},
        **adapter.card(recipe.output),
        "data": {
            "train": list(recipe.data.train),
            "digest": digest,
            "samples": len(held),
            "skipped": list(held.skipped),
        },
        "recipe": recipe.to_data(),
    }
