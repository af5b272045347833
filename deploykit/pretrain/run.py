"""One pretraining run, from data to a folder that ``deploykit export`` takes.

::

    output/  last.safetensors      the state to go on from          card.json            what the encoder is
             metrics.jsonl         a line every so many steps       encoder.safetensors  its weights
             recipe.json           what the run was begun with
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import BusyError, DeploykitError, RecipeError
from deploykit.pretrain.recipe import PretrainRecipe, piece

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deploykit.pretrain.inputs import Held
    from deploykit.pretrain.judge import Judge
    from deploykit.pretrain.start import Start

CARD = "card.json"
WEIGHTS = "encoder.safetensors"
FORMAT = "deploykit.pretrain/1"
_BEGUN = "recipe.json"


@dataclass(frozen=True)
class Outcome:
    """The run's folder and its card; ``unchanged``: it had been finished before, and nothing was done."""

    folder: Path
    card: Mapping[str, Any]
    unchanged: bool = False


def pretrain(
    recipe: PretrainRecipe,
    *,
    resume: bool = False,
    on_line: Callable[[dict[str, Any]], None] | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Carry out a recipe. ``resume`` goes on from the last checkpoint of its folder; ``on_line`` gets every metric,
    and the lines of fine-tuning, which have the key ``finetune``; ``on_stage`` hears in a sentence what begins.

    Raises `BusyError` when the folder holds another run, `InputError` and `RecipeError` for what cannot be trained
    on, `CheckError` when the loss is no longer a number.
    """
    import torch

    from deploykit.pretrain import board, checkpoint, trainer
    from deploykit.pretrain import start as starts

    done = finished(recipe)
    if done is not None:
        return done
    state = _begin(recipe, resume)
    accelerator = trainer.make_accelerator(recipe.training)
    start = starts.read(recipe) if recipe.start else None
    on_stage("reading the data")
    adapter, held, digest = _data(recipe, _known(state, start))
    trained, judge, learn = _split(recipe, adapter, held)
    torch.manual_seed(recipe.seed)
    encoder = piece("encoder", recipe.encoder).build(adapter.space, recipe.options["encoder"])
    objective = piece("objective", recipe.objective)
    untrained = copy.deepcopy(encoder)
    if start is not None:
        start.load_into(encoder)
    begun = None if start is None else copy.deepcopy(encoder)
    task = objective.build(adapter.space, encoder, recipe.options["objective"])
    count = objective.views(recipe.options["objective"])
    if count > 1:
        _check_views(adapter, held, encoder, count, recipe.seed)
    job = trainer.Job(
        task=task,
        encoder=encoder,
        held=held.tensors,
        places=trained,
        views=lambda rows, draws: adapter.views(rows, count, draws) if count else [adapter.clean(rows)],
        views_per_sample=count,
        options=recipe.training,
        seed=recipe.seed,
        folder=recipe.output,
        facts=adapter.facts,
        lengths=adapter.lengths(held.tensors) if hasattr(adapter, "lengths") else None,
        mixes=getattr(adapter, "mixes", False),
        judge=lambda e, step: judge.figures(e),
        judge_every=recipe.probe.every,
        on_stage=on_stage if accelerator.is_main_process else lambda text: None,
    )
    _check_split(recipe, accelerator.num_processes)
    with board.writing(recipe.output / "tensorboard", recipe.training.tensorboard) as write:
        job.on_line = _both(write, on_line)
        figures = trainer.fit(job, accelerator, state is not None)
    encoder = job.encoder  # another module than before where the weights were spread over processes
    if accelerator.is_main_process:  # whatever comes of judging, the encoder is there
        checkpoint.write_tensors(recipe.output / WEIGHTS, dict(encoder.state_dict()), {"format": FORMAT})
    clock = time.perf_counter()
    job.on_stage("judging")
    card = {
        **_facts(recipe, encoder, adapter, held, digest),
        "training": {**figures, "device": str(accelerator.device), "processes": accelerator.num_processes},
        "probes": _probes(judge, encoder, untrained.to(accelerator.device), begun and begun.to(accelerator.device)),
        **_finetuned(recipe, judge, learn, (encoder, untrained), on_line if accelerator.is_main_process else None),
    }
    card["judging"] = {"seconds": round(time.perf_counter() - clock, 1)}
    if accelerator.is_main_process:
        write_json(recipe.output / CARD, card)
    accelerator.wait_for_everyone()
    return Outcome(recipe.output, card)


def _both(
    write: Callable[[dict[str, Any]], None], tell: Callable[[dict[str, Any]], None] | None
) -> Callable[[dict[str, Any]], None]:
    def both(line: dict[str, Any]) -> None:
        write(line)
        if tell is not None:
            tell(line)

    return both


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Plain data, atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def finished(recipe: PretrainRecipe) -> Outcome | None:
    """The outcome of the same recipe's finished run in its folder, over the same data; None where there is none.

    Raises `BusyError` when the folder holds the finished run of another recipe, or over other data.
    """
    path = recipe.output / CARD
    if not path.exists():
        return None
    card = json.loads(path.read_text(encoding="utf-8"))
    what = "another recipe"
    if _same(card.get("recipe"), recipe):
        told = card["data"]
        if told["digest"] == _digest(recipe) and told.get("judged_on", "") == _judged_on(recipe):
            return Outcome(recipe.output, card, unchanged=True)
        what = "this recipe over other data"
    raise BusyError(
        f"{recipe.output} holds the finished run of {what}", hint="choose another output, or remove the folder"
    )


def can_resume(recipe: PretrainRecipe) -> bool:
    """Whether the folder holds a checkpoint of this very training over this very data, and no finished run.

    How it is judged and what is fine-tuned at its end may be another way than it was begun with.
    """
    from deploykit.pretrain import checkpoint

    begun, state = recipe.output / _BEGUN, recipe.output / checkpoint.NAME
    if not begun.exists() or not state.exists() or (recipe.output / CARD).exists():
        return False
    told = json.loads(begun.read_text(encoding="utf-8"))
    ends = {key: recipe.to_data()[key] for key in ("probe", "finetune")}
    return _same({**told["recipe"], **ends}, recipe) and told["digest"] == _digest(recipe)


def _same(told: Any, recipe: PretrainRecipe) -> bool:
    """Whether a recipe as it was written down is this one, keys that it did not have yet at their defaults."""
    try:
        return PretrainRecipe.from_data(told).to_data() == recipe.to_data()
    except DeploykitError:  # a key or a piece that is no more
        return False


def _digest(recipe: PretrainRecipe) -> str:
    """Of what is learnt from: the data, and the weights of another run where this one starts from them."""
    from deploykit.data import digests

    return "+".join([*(digests.of(spec) for spec in recipe.data.train), *_weights_digest(recipe)])


def _judged_on(recipe: PretrainRecipe) -> str:
    """Digest of what is judged with beside the data that are learnt from; empty where there is nothing else."""
    from deploykit.data import digests

    return "+".join(digests.of(spec) for spec in (recipe.data.probe, recipe.data.test) if spec)


def _weights_digest(recipe: PretrainRecipe) -> list[str]:
    from deploykit.data import digests

    return [digests.of(f"{recipe.start}/{WEIGHTS}")] if recipe.start else []


def _known(state: Any, start: Start | None) -> Mapping[str, Any]:
    """The facts of the data that are settled: those of the run that is resumed, or that this one starts from."""
    if state is not None:
        facts: Mapping[str, Any] = state.facts
        return facts
    return {} if start is None else start.facts


def _begin(recipe: PretrainRecipe, resume: bool) -> Any:
    """Make the folder, or read the state to go on from."""
    from deploykit.pretrain import checkpoint

    path = recipe.output / checkpoint.NAME
    if resume:
        state = checkpoint.load(path)
        _check_begun(recipe)
        return state
    if path.exists():
        hint = "go on with --resume, choose another output, or remove the folder"
        raise BusyError(f"{recipe.output} holds an unfinished run", hint=hint)
    recipe.output.mkdir(parents=True, exist_ok=True)
    if os.environ.get("RANK", "0") == "0":  # the others of a run in several processes come here too
        (recipe.output / "metrics.jsonl").unlink(missing_ok=True)
        write_json(recipe.output / _BEGUN, {"recipe": recipe.to_data(), "digest": _digest(recipe)})
    return None


def _check_begun(recipe: PretrainRecipe) -> None:
    """`BusyError` where a run goes on with other data than it began with, or another split of them.

    What was trained on would then be judged with. The rate, say, may be changed: a loss that is no number asks for it.
    """
    path = recipe.output / _BEGUN
    if not path.exists():  # taken from elsewhere, by hand
        return
    told = json.loads(path.read_text(encoding="utf-8"))
    before, now = (_deciding(of) for of in (told["recipe"], json.loads(json.dumps(recipe.to_data()))))
    changed = next((key for key in now if key in before and before[key] != now[key]), None)
    fact = f"{changed} was {before[changed]} and is {now[changed]}" if changed else "its data have changed since"
    if changed or told["digest"] != _digest(recipe):
        hint = "go on with what it began with, or choose another output"
        raise BusyError(f"{recipe.output} holds a run over other data: {fact}", hint=hint)


def _deciding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that decide what is learnt from and what is held out; where the data lie is none of them."""
    data = {key: recipe["data"].get(key) for key in ("holdout", "limit", "names", "test_names", "unreadable")}
    parts = {"data": data, "modality": recipe["modality"]}
    return {"seed": recipe["seed"], **{f"{part}.{k}": v for part, keys in parts.items() for k, v in keys.items()}}


def _check_views(adapter: Any, held: Held, encoder: nn.Module, count: int, seed: int) -> None:
    """`RecipeError` where all views of a sample are one and the same: they then match from the start."""
    import torch

    from deploykit.pretrain.draws import Draws

    some = min(len(held), 64)
    made = adapter.views(tuple(t[:some] for t in held.tensors), count, Draws(seed, some, 0, some))
    drops = any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in encoder.modules())
    if not drops and all(torch.equal(made[0].values, view.values) for view in made[1:]):
        hint = "let them differ: encoder.dropout=0.1, or for texts modality.drop=0.1 or modality.span=0.5"
        raise RecipeError("the views of a sample are all the same, so there is nothing to match", hint=hint)


def _data(recipe: PretrainRecipe, facts: Mapping[str, Any]) -> tuple[Any, Held, str]:
    from deploykit.pretrain import inputs

    options = recipe.data
    trained = inputs.fits(options.test_names, answer=False)
    given = inputs.read(options.train, recipe.modality, options.limit, options.names, trained)
    module, own = piece("modality", recipe.modality), recipe.options["modality"]
    adapter = module.Adapter(own, dict(facts)) if facts else module.Adapter.fit(own, given.inputs, recipe.seed)
    if hasattr(adapter, "parts"):
        given = inputs.in_parts(given, adapter.parts)
    digest = "+".join([given.digest, *_weights_digest(recipe)])
    return adapter, inputs.hold(adapter, given, options, recipe.output), digest


def _split(recipe: PretrainRecipe, adapter: Any, held: Held) -> tuple[Tensor, Judge, Held]:
    """The places that are trained on, the judge, and what fine-tuning learns from.

    Judged is the held-out part of the probe's data, or of the training data.
    """
    from deploykit.pretrain import inputs
    from deploykit.pretrain.judge import Judge

    options = recipe.data
    if options.probe:
        given = inputs.read([options.probe], recipe.modality, options.limit, options.names)
        labelled = inputs.hold(adapter, given, options, recipe.output)
        kept, asked = inputs.split(len(labelled), options.holdout, recipe.seed)
        trained = inputs.every(held)
    else:
        labelled = held
        kept, asked = inputs.split(len(held), options.holdout, recipe.seed)
        trained = kept
    bank, query = (labelled.rows(inputs.some(places, recipe.probe.samples, recipe.seed)) for places in (kept, asked))
    if options.probe and labelled.pairs:  # nothing is fitted to them, so that all of them can be asked
        bank = query = labelled
    test = None
    if options.test or options.test_names:
        specs = [options.test] if options.test else options.train
        given = inputs.read(specs, recipe.modality, 0, options.names, inputs.fits(options.test_names))
        test = inputs.hold(adapter, given, options, recipe.output, labelled.classes)
        _check_test(test, labelled)
    judge = Judge(adapter, bank, query, test, recipe.probe)
    if not recipe.finetune.epochs:
        return trained, judge, bank
    if labelled.labels is None:  # told now, not after the training
        raise RecipeError("there is nothing to fine-tune on: the data have no labels", hint="name some: data.probe")
    if recipe.finetune.batch > len(kept):
        fact = f"finetune.batch is {recipe.finetune.batch}, and there are {len(kept)} labelled inputs"
        raise RecipeError(fact, hint="give a smaller one")
    return trained, judge, labelled.rows(kept)


def _check_test(test: Held, labelled: Held) -> None:
    """`RecipeError` where the test data have no answers, or the probe has none to learn from."""
    if test.pairs or (test.labels is not None and labelled.labels is not None):
        return
    who = "the test data have" if test.labels is None else "the data that the probe learns from have"
    raise RecipeError(
        f"{who} no labels, so that the test data cannot be asked", hint="name labelled data: data.test, data.probe"
    )


def _check_split(recipe: PretrainRecipe, processes: int) -> None:
    parts = recipe.training.accumulate * processes
    if recipe.training.batch % parts or recipe.training.batch // parts < 1:
        raise RecipeError(
            f"training.batch {recipe.training.batch} does not divide into {parts} equal parts",
            hint="make it a multiple of accumulate times the number of processes",
        )


def _probes(judge: Judge, encoder: nn.Module, untrained: nn.Module, begun: nn.Module | None) -> dict[str, Any]:
    """``begun``: what a run that started from another one's weights began with."""
    rows = {"trained": encoder, **({} if begun is None else {"start": begun})}
    return {name: judge.final(e) for name, e in {**rows, "random initialisation": untrained, "raw input": None}.items()}


def _finetuned(
    recipe: PretrainRecipe,
    judge: Judge,
    learn: Held,
    encoders: tuple[nn.Module, nn.Module],
    tell: Callable[[dict[str, Any]], None] | None,
) -> dict[str, Any]:
    """The card's entry on fine-tuning the ``encoders``, trained and untrained; empty where none was asked for."""
    if not recipe.finetune.epochs:
        return {}
    from deploykit.pretrain import finetune

    sets = {"learn": learn, "held_out": judge.query} | ({} if judge.test is None else {"test": judge.test})
    begins = {"trained": ("trained", encoders[0]), "untrained": ("random initialisation", encoders[1])}
    chosen = dict(pair for begin, pair in begins.items() if recipe.finetune.begin in (begin, "both"))
    return {"finetuned": finetune.figures(chosen, judge.adapter, sets, recipe.finetune, recipe.seed, tell)}


def _facts(recipe: PretrainRecipe, encoder: Any, adapter: Any, held: Held, digest: str) -> dict[str, Any]:
    from deploykit.settings import plain

    return {
        "format": FORMAT,
        "name": recipe.output.name,
        "modality": {"name": recipe.modality, "options": plain(recipe.options["modality"]), "facts": adapter.facts},
        "encoder": {"name": recipe.encoder, "options": plain(recipe.options["encoder"])},
        "pooling": encoder.pooling,
        "objective": {"name": recipe.objective, **plain(recipe.options["objective"])},
        **({"start": recipe.start} if recipe.start else {}),
        **adapter.card(recipe.output),
        "data": {
            "train": list(recipe.data.train),
            "digest": digest,
            "judged_on": _judged_on(recipe),
            "samples": len(held),
            "skipped": list(held.skipped),
        },
        "recipe": recipe.to_data(),
    }
