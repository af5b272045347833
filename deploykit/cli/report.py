"""``deploykit report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import console

_WHAT = typer.Argument(
    metavar="RESULT",
    help="What `deploykit bench -o` wrote; or the word history and the folder of `deploykit bench --append`.",
    show_default=False,
)
_HTML = typer.Option("--html", metavar="FILE", help="Write a report with plots here, one file without scripts.")
_MARKDOWN = typer.Option("--markdown", metavar="FILE", help="Write it as Markdown here.")


def report(
    what: Annotated[list[str], _WHAT],
    html: Annotated[Path | None, _HTML] = None,
    markdown: Annotated[Path | None, _MARKDOWN] = None,
    json: console.Json = False,
) -> None:
    """Show a bench, or how benches went over time.

    Nothing is measured, and nothing here fails a build: changes in a history are hints of where to look.

    Example: deploykit report history history/ --html trend.html
    """
    from deploykit.cli.bench import show, write_forms
    from deploykit.errors import InputError
    from deploykit.measure import result
    from deploykit.output import check_output

    for path in filter(None, (html, markdown)):
        check_output(path, "report.html")
    if what[0] == "history" and len(what) == 2:
        _history(Path(what[1]), html, markdown, json)
        return
    if len(what) != 1 or what[0] == "history":
        hint = "deploykit report RESULT.json, or deploykit report history FOLDER"
        raise InputError(f"'{' '.join(what)}' cannot be reported on", hint=hint)
    found = result.read(what[0])
    write_forms(found, html, markdown)
    if json:
        console.print_json(found)
    else:
        show(found)


def _history(folder: Path, html: Path | None, markdown: Path | None, json: bool) -> None:
    from deploykit.measure import history
    from deploykit.output import write_text
    from deploykit.report import bench_history

    found = history.read(folder)
    for path, render in ((html, bench_history.html), (markdown, bench_history.markdown)):
        if path is not None:
            write_text(path, render(found))
            console.say(f"report: {path}")
    if json:
        console.print_json(bench_history.data(found))
    else:
        typer.echo(bench_history.terminal(found), nl=False)
