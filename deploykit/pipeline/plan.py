"""From a recipe to the steps that carry it out; nothing is loaded or computed here but digests of files.

Most steps are known from the recipe alone. What a budget may ask for in addition (an int8 variant with some products
left in float) is known only after full int8 was verified: the step ``search:NAME`` decides it, and `follow_up` gives
the steps that make it. Nothing is known of an encoder that is still to be trained: a recipe that begins with training
is planned again once that is finished.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from deploykit import judge, registry, sources
from deploykit.data import digests
from deploykit.errors import MissingError, RecipeError
from deploykit.measure import fingerprint
from deploykit.pipeline import judging, training
from deploykit.pipeline.choose import DRIFT_TERMS, MEASURED, REFERENCE_PRECISION
from deploykit.pipeline.step import Step, Watch
from deploykit.pipeline.training import Training
from deploykit.recipe import AUTO, Recipe
from deploykit.runtime import hardware
from deploykit.runtime.selection import cpu_fault
from deploykit.runtime.tensorrt import driver
from deploykit.sources import Identity

_ACTIONS = "deploykit.pipeline.actions"
_EXPORT_PACKAGES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "transformers",
    "tokenizers",
    "timm",
    "onnxruntime",
    "numpy",
)
_ENGINE_PACKAGES = ("onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "numpy")
_LOWER_PACKAGES = (*_ENGINE_PACKAGES, "onnx-ir", "nncf")
_SAMPLE_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tokenizers", "pillow", "soundfile", "numpy")


_TAKE_EXAMPLES = ("onnx", "module")


def variant_name(target: str, precision: str) -> str:
    """``TARGET-PRECISION``, and no word of it twice: a name from another package may hold the other one already."""
    if target == precision or target.endswith(f"-{precision}"):
        return target
    return precision if precision.startswith(f"{target}-") else f"{target}-{precision}"


@dataclass(frozen=True)
class Wanted:
    """One variant to build. ``keep`` names the products that a search put back to float; ``suffix`` tells it apart."""

    target: str
    precision: str
    keep: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``openvino-int8``, or ``openvino-int8-partial`` where products were put back."""
        return variant_name(self.target, self.precision) + ("-partial" if self.keep else "")


@dataclass(frozen=True)
class Plan:
    """The steps, each behind those that it needs, the identity of the source, and sentences for the user.

    ``training`` comes before all of them. While it is not finished there are no others. ``unjudged`` says why there is
    no step ``judge``, where there is none.
    """

    recipe: Recipe
    identity: Identity
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    training: Training | None = None
    unjudged: str = ""

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)


def plan(recipe: Recipe) -> Plan:
    """Decide the steps. Raises `SourceError` for a model that is not there, `RecipeError` for an impossible choice."""
    _refuse_unmeasured(recipe)
    wanted, notes = _wanted(recipe)
    first = training.of(recipe)
    if first is not None and not first.finished:
        notes.append("the steps behind the training are planned when it is finished")
        return Plan(recipe, training.untrained(first.recipe), (), tuple(notes), first)
    identity = sources.resolve(recipe.source.model, recipe.source.options)
    steps = [_export_step(recipe, identity)]
    if _needs_samples(recipe, wanted):
        recipe, told = training.with_its_data(recipe, identity)
        notes += told
        steps.append(_samples_step(recipe, wanted))
    sampled = len(steps) > 1
    unjudged = judging.unjudged(recipe.proof.judge, identity, recipe.source.options)
    if not unjudged:
        steps.append(_judge_step(recipe, identity))
    elif unjudged.endswith(judge.NOT_INSTALLED):
        notes.append(f"not judged: {unjudged}")
    steps += {step.name: step for step in (_lower_step(recipe, variant) for variant in wanted)}.values()
    for variant in wanted:
        steps += _variant_steps(recipe, variant, sampled)
    steps += [_search_step(recipe, variant) for variant in wanted if _is_searched(recipe, variant)]
    steps.append(_measure_step(recipe, wanted))
    return Plan(recipe, identity, tuple(steps), tuple(notes), first, unjudged)


def follow_up(recipe: Recipe, step: Step, metadata: Mapping[str, Any]) -> tuple[Step, ...]:
    """The steps that the outcome of ``step`` asks for: those of a partial variant, after a search that found one."""
    if step.kind != "search" or not metadata.get("keep"):
        return ()
    variant = Wanted(step.options["target"], step.options["precision"], tuple(metadata["keep"]))
    return (_lower_step(recipe, variant), *_variant_steps(recipe, variant, sampled=True))


def measuring(step: Step, names: Sequence[str]) -> Step:
    """The measure step for the variants that passed."""
    parents = ("export", *(f"{kind}:{name}" for name in names for kind in ("compile", "verify")))
    return replace(step, options={"variants": list(names)}, parents=parents)


def _wanted(recipe: Recipe) -> tuple[list[Wanted], list[str]]:
    """The variants that can be built here of those asked for, and a note for each that cannot.

    ``auto`` stands for everything that a target has; a limit on a change needs fp32 to be held against. Raises
    `RecipeError` for a precision that no chosen target has, `MissingError` if this CPU has no arithmetic for anything
    that was asked for.
    """
    supported = {target: registry.module("targets", target).PRECISIONS for target in recipe.variants.targets}
    asked = list(recipe.variants.precisions)
    found, notes = [], []
    for precision in [name for name in asked if name != AUTO]:
        registry.module("precisions", precision)
        able = [target for target in supported if registry.compiled_as(target, precision)]
        if not able:
            have = "; ".join(f"{target} has {', '.join(names)}" for target, names in supported.items())
            raise RecipeError(f"no chosen target has the precision '{precision}'", hint=have)
        found += [Wanted(target, precision) for target in able]
        notes += [f"{target} has no {precision}: not built" for target in supported if target not in able]
    everything = [Wanted(target, precision) for target in supported for precision in supported[target]]
    if AUTO in asked:
        found += everything
    lacking = {variant: reason for variant in dict.fromkeys(found) if (reason := _cpu_fault(variant))}
    if lacking and len(lacking) == len(set(found)):
        raise MissingError(
            f"nothing that was asked for can be built here: {_reasons(lacking)}",
            hint="build it on a machine that has that, or ask for another precision: fp32 runs everywhere",
        )
    notes += [f"{variant.name} is not built here: {reason}" for variant, reason in lacking.items()]
    if any(limit.relative for limit in recipe.budget.parsed().limits):
        found += [variant for variant in everything if variant.precision == REFERENCE_PRECISION]
    kept = [variant for variant in dict.fromkeys(found) if variant not in lacking]
    _check_distinct(kept)
    return sorted(kept, key=lambda variant: list(supported).index(variant.target)), notes


def _check_distinct(found: Sequence[Wanted]) -> None:
    """`RecipeError` for two variants of one name, which targets and precisions of other packages may come to."""
    by_name: dict[str, Wanted] = {}
    for variant in found:
        other = by_name.setdefault(variant.name, variant)
        if other != variant:
            pairs = " and ".join(f"{v.precision} for {v.target}" for v in (other, variant))
            raise RecipeError(f"{pairs} are both called '{variant.name}'", hint="build one of them at a time")


def _cpu_fault(variant: Wanted) -> str:
    """Why this machine's CPU has no arithmetic for a variant, in words; empty if it has."""
    requires = getattr(registry.module("targets", variant.target), "REQUIRES", {})
    as_precision = registry.compiled_as(variant.target, variant.precision)
    return cpu_fault(requires.get(as_precision, {}), hardware.cpu())


def _reasons(lacking: Mapping[Wanted, str]) -> str:
    return "; ".join(f"{variant.name}: {reason}" for variant, reason in lacking.items())


def _refuse_unmeasured(recipe: Recipe) -> None:
    for limit in recipe.budget.parsed().limits:
        if limit.term not in MEASURED:
            raise RecipeError(
                f"the budget limits '{limit.term}', which an export does not measure",
                hint=f"it measures {', '.join(MEASURED)}",
            )


def _needs_samples(recipe: Recipe, wanted: Sequence[Wanted]) -> bool:
    """fp32 that is only proven needs no data; everything else is calibrated on some or judged by some."""
    given = recipe.calibration.data or recipe.evaluation.data
    return bool(given) or any(variant.precision != REFERENCE_PRECISION for variant in wanted)


def _is_searched(recipe: Recipe, variant: Wanted) -> bool:
    """A precision that can leave products in float, under a budget for drift: where all break it, some may not."""
    limited = any(limit.term in DRIFT_TERMS for limit in recipe.budget.parsed().limits)
    return limited and "keep" in {f.name for f in fields(registry.module("precisions", variant.precision).Options)}


def _export_step(recipe: Recipe, identity: Identity) -> Step:
    source = _with_example(recipe, identity)
    return Step(
        name="export",
        action=f"{_ACTIONS}:export",
        options={
            "model": recipe.source.model,
            "source": plain(source),
            **({"example": digests.of(source.example)} if source.example else {}),
            "kind": identity.kind,
            "location": _place(identity.location, recipe.source.options),
            "opset": recipe.export.opset,
            "exporter": recipe.export.exporter,
        },
        packages=_EXPORT_PACKAGES,
        timeout_s=recipe.export.timeout_s,
        watch=Watch(_roots(identity.location)),
        facts={"source": recipe.source.model, "opset": str(recipe.export.opset)},
    )


def _place(location: str, options: sources.Options) -> str:
    """As `_absolute`, with the folder that the class of bare weights is imported from."""
    places = [_absolute(location)]
    if options.architecture is not None:
        places.append(_absolute(options.architecture))
    return " ".join(places)


def _absolute(location: str) -> str:
    """The place itself, whatever folder this process is in; what is no path, with what decides where it is found."""
    path = Path(location).expanduser()
    if path.exists():
        return str(path.absolute())
    return " ".join([location, str(Path.cwd()), os.environ.get("PYTHONPATH", "")])


def _roots(location: str) -> tuple[str, ...]:
    """The folder of a source: its own, or that in which its file and the files of its preprocessing lie."""
    path = Path(location).expanduser().absolute()
    if not path.exists():
        return ()
    if path.is_dir():
        return (str(path),)
    return (str(path.parent.parent if path.parent.name == "onnx" else path.parent),)


def _judge_step(recipe: Recipe, identity: Identity) -> Step:
    return Step(
        name=judging.NAME,
        action=f"{_ACTIONS}:judge",
        options={
            "model": recipe.source.model,
            "source": plain(recipe.source.options),
            "kind": identity.kind,
            "location": _absolute(identity.location) if Path(identity.location).exists() else identity.location,
        },
        parents=("export",),
        packages=judging.PACKAGES,
        timeout_s=recipe.export.timeout_s,
        watch=Watch(_roots(identity.location)),
        facts={"by": identity.kind},
    )


def _with_example(recipe: Recipe, identity: Identity) -> sources.Options:
    """The source's options; of what takes preprocessed tensors the proof takes the user's data if there are any."""
    options = recipe.source.options
    given = (spec for spec in (recipe.evaluation.data, recipe.calibration.data) if spec.endswith(".npz"))
    if options.example or identity.kind not in _TAKE_EXAMPLES:
        return options
    return replace(options, example=next(given, None))


def _samples_step(recipe: Recipe, wanted: Sequence[Wanted]) -> Step:
    specs = {"calibration": recipe.calibration.data, "evaluation": recipe.evaluation.data}
    return Step(
        name="samples",
        action=f"{_ACTIONS}:samples",
        options={
            **specs,
            "calibrates": any(registry.module("precisions", variant.precision).CALIBRATED for variant in wanted),
            "calibration_samples": recipe.calibration.samples,
            "evaluation_samples": recipe.evaluation.samples,
            "unreadable": recipe.calibration.unreadable,
            "skip": list(recipe.calibration.skip),
            "digests": {role: digests.named(spec) for role, spec in specs.items() if spec},
        },
        parents=("export",),
        packages=_SAMPLE_PACKAGES,
        watch=Watch(tuple(root for spec in specs.values() for root in digests.places(spec)), by_name=False),
        timeout_s=recipe.export.timeout_s,
        facts={role: spec for role, spec in specs.items() if spec},
    )


def _lower_step(recipe: Recipe, variant: Wanted) -> Step:
    module = registry.module("precisions", variant.precision)
    options = _resolved(module, recipe.options("precisions", variant.precision))
    if variant.keep:
        options = replace(options, keep=tuple(dict.fromkeys((*options.keep, *variant.keep))))
    return Step(
        name=_lower_name(variant),
        action=f"{_ACTIONS}:lower",
        options={"precision": variant.precision, "form": _form(variant), "options": plain(options)},
        parents=("export", "samples") if module.CALIBRATED else ("export",),
        packages=_LOWER_PACKAGES,
        timeout_s=recipe.export.timeout_s,
        required=False,
    )


def _lower_name(variant: Wanted) -> str:
    form = _form(variant)
    return f"lower:{variant.precision}" + (f"@{form}" if form else "") + ("+partial" if variant.keep else "")


def _form(variant: Wanted) -> str:
    return str(registry.module("precisions", variant.precision).FORMS.get(variant.target, ""))


def _resolved(module: ModuleType, options: Any) -> Any:
    """Options with what this machine has in the place of ``auto``, where the precision asks for that."""
    return module.resolve(options) if hasattr(module, "resolve") else options


def _variant_steps(recipe: Recipe, variant: Wanted, sampled: bool) -> Sequence[Step]:
    options = {
        "name": variant.name,
        "target": variant.target,
        "precision": variant.precision,
        "lower": _lower_name(variant),
        "options": plain(recipe.targets.get(variant.target)),
    }
    as_precision = registry.compiled_as(variant.target, variant.precision)
    if as_precision != variant.precision:  # the target's own need nothing more in the name of their step
        options["compiled_as"] = as_precision
    compile_step = Step(
        name=f"compile:{variant.name}",
        action=f"{_ACTIONS}:compile_variant",
        options=options,
        parents=("export", _lower_name(variant)),
        packages=_ENGINE_PACKAGES,
        timeout_s=recipe.export.timeout_s,
        required=False,
    )
    verify_step = Step(
        name=f"verify:{variant.name}",
        action=f"{_ACTIONS}:verify",
        options=options,
        parents=("export", *(("samples",) if sampled else ()), f"compile:{variant.name}"),
        packages=_ENGINE_PACKAGES,
        hardware=fingerprint.machine()["id"],
        timeout_s=recipe.export.timeout_s,
        required=False,
        alone=_runs_here(variant.target),
    )
    return compile_step, verify_step


def _runs_here(target: str) -> bool:
    """Whether the target's engines run on this machine; else their numbers are checked, on a share of its cores."""
    return not hasattr(registry.module("targets", target), "check_engine") or driver.gpu() is not None


def _search_step(recipe: Recipe, variant: Wanted) -> Step:
    module = registry.module("precisions", variant.precision)
    return Step(
        name=f"search:{variant.name}",
        action=f"{_ACTIONS}:search",
        options={
            "name": variant.name,
            "target": variant.target,
            "precision": variant.precision,
            "form": _form(variant),
            "options": plain(_resolved(module, recipe.options("precisions", variant.precision))),
            "target_options": plain(recipe.targets.get(variant.target)),
            "budget": str(recipe.budget.parsed()),
            "undecided": recipe.budget.undecided,
            "workload": recipe.budget.workload,
        },
        parents=("export", "samples", f"compile:{variant.name}", f"verify:{variant.name}"),
        packages=_LOWER_PACKAGES,
        hardware=fingerprint.machine()["id"],
        timeout_s=recipe.export.timeout_s,
        required=False,
        alone=True,
    )


def _measure_step(recipe: Recipe, wanted: Sequence[Wanted]) -> Step:
    step = Step(
        name="measure",
        action=f"{_ACTIONS}:measure",
        options={},
        packages=_ENGINE_PACKAGES,
        hardware=fingerprint.machine()["id"],
        timeout_s=recipe.export.timeout_s,
        required=AUTO in recipe.variants.precisions,  # what was not timed cannot be chosen by its time
        alone=True,
    )
    return measuring(step, [variant.name for variant in wanted])


def plain(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass as JSON data; empty for None."""
    if not is_dataclass(options):
        return {}
    return {f.name: getattr(options, f.name) for f in fields(options)}
