"""``deploykit run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import console, steps
from deploykit.cli.export import DRY_RUN, SHOW_RECIPE

_RECIPE = typer.Argument(
    metavar="RECIPE",
    help="A recipe: a .toml file. `deploykit export … --show-recipe` writes one.",
    show_default=False,
)
_UNTIL = typer.Option(
    metavar="STEP", help="Stop after this step or kind of step: export, lower, compile, verify or measure."
)


def run(
    recipe: Annotated[Path, _RECIPE],
    until: Annotated[str | None, _UNTIL] = None,
    show_recipe: Annotated[bool, SHOW_RECIPE] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    json: console.Json = False,
) -> None:
    """Carry out a recipe, from encoder to report.

    Results are stored step by step: an interrupted run goes on where it was, a second run has nothing to do.

    Example: deploykit run recipes/quickstart.toml
    """
    from deploykit.recipe import Recipe

    chosen = Recipe.from_toml(recipe)
    if show_recipe:
        steps.show_recipe(chosen, json)
    elif dry_run:
        steps.show_plan(chosen, json)
    else:
        steps.carry_out(chosen, until, json)
