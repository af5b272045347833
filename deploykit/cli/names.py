"""``deploykit list``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from deploykit.cli import console

KINDS = ("targets", "precisions", "sources", "objectives")


def list_names(
    what: Annotated[
        str, typer.Argument(metavar="KIND", help="targets, precisions, sources or objectives.", show_default=False)
    ],
    json: console.Json = False,
) -> None:
    """List targets, precisions, sources or objectives.

    These are the names that `deploykit export` and `deploykit pretrain` take; targets are engines.

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
