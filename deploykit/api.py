"""From Python: one call for each thing that the command line can build."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.recipe import Recipe

if TYPE_CHECKING:
    from deploykit.pipeline.run import Event, Outcome
    from deploykit.runtime import Bundle


def export(
    source: str | Path,
    *,
    output: str | Path | None = None,
    targets: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    calibration: str | Path | None = None,
    evaluation: str | Path | None = None,
    budget: str | None = None,
    sm: Sequence[str] | None = None,
    opset: int | None = None,
    exporter: str | None = None,
    kind: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    fixed_length: int | None = None,
    dim: int | None = None,
    tower: str | None = None,
    route: str | None = None,
    preprocess: str | None = None,
    prompts: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    architecture: str | None = None,
    init: Mapping[str, Any] | None = None,
    image: int | Sequence[int] | None = None,
    resize: int | None = None,
    resample: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    audio: int | None = None,
    text: str | Path | None = None,
    bind: Mapping[str, str] | None = None,
    output_name: str | None = None,
    axes: Mapping[str, str] | None = None,
    example: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    judge: bool = True,
    report: bool = True,
) -> Bundle:
    """Build a bundle from a trained encoder; what is None is as the source or the recipe's defaults say.

    ``source`` is what ``[source] model`` of a recipe may be; ``calibration`` and ``evaluation`` name data
    (`deploykit.data`), ``budget`` is what may be lost and must be gained (`deploykit.budget`; None is "standard",
    "none" is no budget), ``sm`` are compute capabilities ("8.9") for which TensorRT engines are built ahead of time.
    ``pooling`` to ``outputs`` are the options of `deploykit.sources.Options`: ``dim=256`` keeps the first 256 numbers
    of a vector, and with ``prompts={"query": "query: "}`` a call ``encode(texts, kind="query")`` puts that before each
    text; ``outputs=["token_embeddings"]`` adds what ``encode(texts, output="token_embeddings")`` gives.
    ``architecture`` to ``text`` are those for modules of one's own: their class, and what they take; ``bind`` to
    ``example`` are those of an ``.onnx`` and of preprocessed tensors. ``judge`` False
    leaves out the comparison with the library that the model comes from. Variants that did not pass are announced by a
    `UserWarning` and kept, with the reason, in ``bundle.manifest.refused``. Raises a `DeploykitError` otherwise.
    """
    from deploykit.runtime import Bundle

    outcome = run(
        recipe(
            source,
            output=output,
            variants={"targets": targets, "precisions": precisions},
            data={"calibration": calibration, "evaluation": evaluation},
            budget=budget,
            sm=sm,
            settings={"opset": opset, "exporter": exporter},
            overrides={
                "kind": kind,
                "pooling": pooling,
                "normalize": normalize,
                "max_length": max_length,
                "fixed_length": fixed_length,
                "dim": dim,
                "tower": tower,
                "route": route,
                "preprocess": preprocess,
                "prompts": None if prompts is None else dict(prompts),
                "outputs": None if outputs is None else list(outputs),
                "architecture": architecture,
                "init": None if init is None else dict(init),
                "image": list(image) if isinstance(image, Sequence) else image,
                "resize": resize,
                "resample": resample,
                "mean": None if mean is None else list(mean),
                "std": None if std is None else list(std),
                "audio": audio,
                "text": None if text is None else str(text),
                "bind": None if bind is None else dict(bind),
                "output_name": output_name,
                "axes": None if axes is None else dict(axes),
                "example": None if example is None else str(example),
                "revision": revision,
                "trust_remote_code": trust_remote_code,
            },
            judge=judge,
            report=report,
        )
    )
    for refused in outcome.refused:
        warnings.warn(f"{refused['variant']} is not in the bundle: {refused['reason']}", stacklevel=2)
    assert outcome.bundle is not None
    return Bundle.open(outcome.bundle)


def recipe(
    source: str | Path,
    *,
    output: str | Path | None = None,
    variants: dict[str, Sequence[str] | None] | None = None,
    data: dict[str, str | Path | None] | None = None,
    budget: str | None = None,
    sm: Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    judge: bool = True,
    report: bool = True,
    where: str = "the arguments",
) -> Recipe:
    """The recipe that arguments amount to; values that are None, and empty lists, are left to the defaults.

    ``variants``, ``settings`` and ``overrides`` are the keys of ``[variants]``, ``[export]`` and ``[source]``;
    ``data`` names what ``[calibration]`` and ``[evaluation]`` read; ``sm`` is the key of that name of every chosen
    target that has it; ``where`` is what messages call the arguments.
    """
    lists = {key: list(names) for key, names in (variants or {}).items() if names}
    sets = {role: {"data": str(spec)} for role, spec in (data or {}).items() if spec is not None}
    sections = {
        "source": {"model": str(source), **_given(overrides)},
        "export": _given(settings),
        "variants": lists,
        **sets,
        "budget": {} if budget is None else {"limits": budget},
        "bundle": {} if output is None else {"output": str(output)},
        **({} if judge else {"proof": {"judge": False}}),
        "report": {"enabled": report},
        **({"targets": _ahead(lists.get("targets", []), list(sm), where)} if sm else {}),
    }
    return Recipe.from_data(sections, where=where)


def run(
    recipe: Recipe | str | Path,
    *,
    until: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Outcome:
    """Carry out a recipe (or the file of one) up to and with step ``until``; ``on_event`` hears of every step."""
    from deploykit.pipeline.plan import plan
    from deploykit.pipeline.run import run as run_plan

    recipe = recipe if isinstance(recipe, Recipe) else Recipe.from_toml(recipe)
    return run_plan(plan(recipe), until=until, on_event=on_event)


def _ahead(targets: Sequence[str], sm: list[str], where: str) -> dict[str, Any]:
    """The options of the chosen targets that build for GPUs which are not here."""
    from deploykit import registry
    from deploykit.errors import RecipeError

    able = [name for name in targets if "sm" in {f.name for f in fields(registry.module("targets", name).Options)}]
    if not able:
        raise RecipeError(
            f"{where}: sm is {', '.join(sm)}, and no chosen target builds for compute capabilities",
            hint="add the target tensorrt-rtx",
        )
    return {name: {"sm": sm} for name in able}


def _given(values: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (values or {}).items() if value is not None}
