"""Puts the commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from deploykit.cli import bench, bundle, doctor, drift, embed, export, gate, init, inspect, names, pretrain, report, run

app = typer.Typer(
    name="deploykit",
    help="Bring a trained encoder into production: export it, prove it on each engine, run it without torch.",
    epilog="Exit codes: 0 done; 1 a check failed; 2 wrong usage or input; 3 undecided; 4 something is missing here.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("export")(export.export)
app.command("run")(run.run)
app.command("pretrain")(pretrain.pretrain)
app.command("embed")(embed.embed)
app.command("drift")(drift.drift)
app.command("bench")(bench.bench)
app.command("gate")(gate.gate)
app.command("report")(report.report)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("list")(names.list_names)
app.add_typer(bundle.app, name="bundle")
app.add_typer(init.app, name="init")


@app.callback(invoke_without_command=True)
def deploykit(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure; may stand anywhere.")
    ] = False,
) -> None:
    """Reads the options that belong to no command. ``--debug`` is taken out before; it stands here for the help."""
    if version:
        import deploykit as package

        typer.echo(f"deploykit {package.__version__}")
        raise typer.Exit
