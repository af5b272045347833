"""``deploykit init ci``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import console

app = typer.Typer(
    help="Write the files that a project begins with.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def init() -> None:
    """A group with one command is still a group."""


@app.command()
def ci(
    candidate: Annotated[
        str, typer.Option(metavar="BUNDLE", help="The new bundle, which the project's build step makes.")
    ] = "build/new.bundle",
    baseline: Annotated[
        str, typer.Option(metavar="BUNDLE", help="The bundle that is in use.")
    ] = "production/old.bundle",
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="DATA", help="What to encode and to time with.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", metavar="BUDGET", help="What may be lost, as for `deploykit gate`.")
    ] = None,
    system: Annotated[
        list[str] | None,
        typer.Option("--for", metavar="NAME", help="github or gitlab; may be repeated. Default: both."),
    ] = None,
    folder: Annotated[Path, typer.Option(metavar="PATH", help="The project's folder.")] = Path(),
    json: console.Json = False,
) -> None:
    """Write a pipeline that gates every change.

    For GitHub .github/workflows/deploykit-gate.yml, for GitLab .gitlab/deploykit-gate.yml. Each installs deploykit from
    the place that its variable DEPLOYKIT names, runs the gate, and keeps JUnit, a page and the result; the step that
    builds the bundle is yours to fill in. A file that is there already is never written over.

    Example: deploykit init ci --for github --data texts.txt
    """
    from deploykit.gate import ci as library

    gate = library.Pipeline(candidate, baseline, data or "", budget or "")
    written = library.write(folder, gate, tuple(system or library.SYSTEMS))
    if json:
        console.print_json({"written": written})
        return
    for path in written:
        typer.echo(f"{path}: fill in the step that builds {candidate}")
    if any(path.parent.name == ".gitlab" for path in written):
        typer.echo(f"add to .gitlab-ci.yml:\n{library.INCLUDE}")
