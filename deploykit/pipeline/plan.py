"""From a recipe to the steps that carry it out; nothing is loaded or computed here but digests of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from deploykit import registry, sources
from deploykit.errors import RecipeError
from deploykit.measure import fingerprint
from deploykit.pipeline.step import Step
from deploykit.recipe import Recipe
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
_ENGINE_PACKAGES = ("onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy")


@dataclass(frozen=True)
class Plan:
    """The steps in the order in which they run, the identity of the source, and sentences for the user."""

    recipe: Recipe
    identity: Identity
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()

    def step(self, name: str) -> Step:
        """The step of that name."""
        return next(step for step in self.steps if step.name == name)


def plan(recipe: Recipe) -> Plan:
    """Decide the steps. Raises `SourceError` for a model that is not there, `RecipeError` for an impossible choice."""
    identity = sources.resolve(recipe.source.model, recipe.source.options)
    pairs, notes = _pairs(recipe)
    steps = [_export_step(recipe, identity)]
    lowered = {precision for _, precision in pairs}
    steps += [_lower_step(recipe, precision) for precision in sorted(lowered)]
    for target, precision in pairs:
        steps += _variant_steps(recipe, target, precision)
    steps.append(_measure_step(recipe, [f"{target}-{precision}" for target, precision in pairs]))
    return Plan(recipe, identity, tuple(steps), tuple(notes))


def _pairs(recipe: Recipe) -> tuple[list[tuple[str, str]], list[str]]:
    """The (target, precision) pairs that exist, and a note for each that was asked for and does not."""
    supported = {target: registry.module("targets", target).PRECISIONS for target in recipe.variants.targets}
    pairs, notes = [], []
    for precision in dict.fromkeys(recipe.variants.precisions):
        registry.module("precisions", precision)
        able = [target for target in supported if precision in supported[target]]
        if not able:
            have = "; ".join(f"{target} has {', '.join(names)}" for target, names in supported.items())
            raise RecipeError(f"no chosen target has the precision '{precision}'", hint=have)
        pairs += [(target, precision) for target in able]
        notes += [f"{target} has no {precision}: not built" for target in supported if target not in able]
    return sorted(pairs, key=lambda pair: list(supported).index(pair[0])), notes


def _export_step(recipe: Recipe, identity: Identity) -> Step:
    return Step(
        name="export",
        action=f"{_ACTIONS}:export",
        options={
            "model": recipe.source.model,
            "source": plain(recipe.source.options),
            "kind": identity.kind,
            "digest": identity.digest,
            "opset": recipe.export.opset,
            "exporter": recipe.export.exporter,
        },
        packages=_EXPORT_PACKAGES,
        timeout_s=recipe.export.timeout_s,
        reusable=identity.digest is not None,
        facts={"source": recipe.source.model, "opset": str(recipe.export.opset)},
    )


def _lower_step(recipe: Recipe, precision: str) -> Step:
    return Step(
        name=f"lower:{precision}",
        action=f"{_ACTIONS}:lower",
        options={"precision": precision, "options": plain(recipe.precisions.get(precision))},
        parents=("export",),
        packages=("onnx", "numpy"),
        timeout_s=recipe.export.timeout_s,
        required=False,
    )


def _variant_steps(recipe: Recipe, target: str, precision: str) -> Sequence[Step]:
    variant = {"target": target, "precision": precision, "options": plain(recipe.targets.get(target))}
    name = f"{target}-{precision}"
    compile_step = Step(
        name=f"compile:{name}",
        action=f"{_ACTIONS}:compile_variant",
        options=variant,
        parents=("export", f"lower:{precision}"),
        packages=_ENGINE_PACKAGES,
        timeout_s=recipe.export.timeout_s,
        required=False,
    )
    verify_step = Step(
        name=f"verify:{name}",
        action=f"{_ACTIONS}:verify",
        options=variant,
        parents=("export", f"compile:{name}"),
        packages=_ENGINE_PACKAGES,
        hardware=fingerprint.machine()["id"],
        timeout_s=recipe.export.timeout_s,
        required=False,
    )
    return compile_step, verify_step


def _measure_step(recipe: Recipe, names: Sequence[str]) -> Step:
    variants = [f"{kind}:{name}" for name in names for kind in ("compile", "verify")]
    return Step(
        name="measure",
        action=f"{_ACTIONS}:measure",
        options={"variants": list(names)},
        parents=("export", *variants),
        packages=_ENGINE_PACKAGES,
        hardware=fingerprint.machine()["id"],
        timeout_s=recipe.export.timeout_s,
        required=False,
    )


def plain(options: Any) -> dict[str, Any]:
    """The fields of an options dataclass as JSON data; empty for None."""
    if not is_dataclass(options):
        return {}
    return {f.name: getattr(options, f.name) for f in fields(options)}
