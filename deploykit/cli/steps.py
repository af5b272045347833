"""What the commands that carry out a recipe have in common: settings, plan, progress, outcome."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from deploykit.cli import console

if TYPE_CHECKING:
    from deploykit.pipeline.run import Event, Outcome
    from deploykit.recipe import Recipe


def say_recipe(recipe: Recipe) -> None:
    """The effective settings of a recipe."""
    console.say_settings("settings", flat(recipe.to_data()))


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one: ``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def show_recipe(recipe: Recipe, json: bool) -> None:
    """The recipe as TOML, or as data."""
    if json:
        console.print_json(recipe.to_data())
    else:
        typer.echo(recipe.to_toml(), nl=False)


def show_plan(recipe: Recipe, json: bool) -> None:
    """The steps, and which of them the store already holds; nothing is carried out."""
    from deploykit.pipeline.plan import plan
    from deploykit.pipeline.run import status

    say_recipe(recipe)
    planned = plan(recipe)
    rows = status(planned)
    if json:
        steps = [{"step": step.name, "in_store": stored, "does": step.describe()} for step, stored in rows]
        console.print_json({"recipe": recipe.to_data(), "steps": steps, "notes": list(planned.notes)})
        return
    for step, stored in rows:
        typer.echo(f"{'in store' if stored else 'to do':<8}  {step.describe()}")
    for note in planned.notes:
        typer.echo(f"note: {note}")


def carry_out(recipe: Recipe, until: str | None, json: bool) -> None:
    """Run the recipe, tell of its steps, and print the outcome. Ends with 1 or 4 when a variant was refused."""
    from deploykit import api
    from deploykit.pipeline.decide import BudgetError

    say_recipe(recipe)
    try:
        with console.Progress() as progress:
            going: dict[str, None] = {}
            outcome = api.run(recipe, until=until, on_event=lambda event: _tell(event, progress, going))
    except BudgetError as error:
        console.say(_candidates(error.rows))
        raise
    if json:
        console.print_json(_as_data(outcome, recipe))
    else:
        _print(outcome)
    codes = [int(item["exit_code"]) for item in outcome.refused]
    if codes:
        raise typer.Exit(1 if 1 in codes else codes[0])


def _tell(event: Event, progress: console.Progress, going: dict[str, None]) -> None:
    """``going`` are the steps that have begun and were not told to have ended."""
    if event.state == "started":
        going[event.step] = None
        progress.begin(", ".join(going))
        return
    going.pop(event.step, None)
    progress.clear()
    seconds = f"{event.seconds:6.1f} s" if event.seconds >= 0.05 else " " * 8
    note = f": {event.note}" if event.note and event.state != "failed" else ""  # why it failed is told at the end
    console.say(f"  {event.state:<7} {seconds}  {event.step}{note}")
    if going:
        progress.begin(", ".join(going))


def _as_data(outcome: Outcome, recipe: Recipe) -> dict[str, Any]:
    return {
        "bundle": outcome.bundle,
        "report": outcome.report,
        "variants": list(outcome.variants),
        "refused": list(outcome.refused),
        "candidates": list(outcome.candidates),
        "notes": list(outcome.notes),
        "unchanged": outcome.unchanged,
        "seconds": round(outcome.seconds, 2),
        "recipe": recipe.to_data(),
    }


def _candidates(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of what was measured; empty where everything was taken."""
    from deploykit.report import terminal
    from deploykit.report.model import candidate_rows

    found = candidate_rows(rows)
    return terminal.candidates(found) if found else ""


def _print(outcome: Outcome) -> None:
    for note in outcome.notes:
        console.say(f"note: {note}")
    for item in outcome.refused:
        console.say(f"refused: {item['variant']}: {item['reason']}")
        if item["hint"]:
            console.say(f"  → {item['hint']}")
    if outcome.bundle is None:
        typer.echo(f"stopped as asked after {outcome.seconds:.1f} s; the finished steps are in the store")
        return
    table = _candidates(outcome.candidates)
    if table:
        typer.echo(table)
    if outcome.unchanged:
        typer.echo("nothing to do: every step is in the store and the bundle is up to date")
    names = ", ".join(str(variant["name"]) for variant in outcome.variants)
    typer.echo(f"bundle: {outcome.bundle} ({names})")
    if outcome.report is not None:
        typer.echo(f"report: {outcome.report}")
    typer.echo(
        f"next:   deploykit embed {outcome.bundle} builtin:sentences -o vectors.npy" if sys.stdout.isatty() else "",
        nl=sys.stdout.isatty(),
    )
