"""``deploykit list``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from deploykit.cli import console

KINDS = ("targets", "precisions", "sources")


def list_names(
    what: Annotated[str, typer.Argument(metavar="KIND", help="targets, precisions or sources.", show_default=False)],
    json: console.Json = False,
) -> None:
    """List targets, precisions or sources.

    These are the names that `deploykit export` takes; targets are engines.

    Example: deploykit list targets
    """
    from deploykit import catalog
    from deploykit.errors import UnknownNameError, nearest
    from deploykit.report.terminal import table

    if what not in KINDS:
        raise UnknownNameError(f"there is no list of '{what}'", hint=nearest(what, KINDS))
    entries = catalog.entries(what)
    if json:
        console.print_json([{k: v for k, v in asdict(e).items() if v not in (None, ())} for e in entries])
    elif what == "targets":
        rows = [(e.name, "yes" if e.installed else "no", ", ".join(e.precisions), e.summary) for e in entries]
        typer.echo(table(("target", "installed", "precisions", "what it is"), rows))
    else:
        typer.echo(table((what[:-1], "what it is"), [(e.name, e.summary) for e in entries]))
