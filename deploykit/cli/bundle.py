"""``deploykit bundle verify | selftest | pack | unpack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import console

if TYPE_CHECKING:
    from deploykit.runtime.selftest import VariantResult

app = typer.Typer(
    help="Check, test, pack and unpack bundles.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_Bundle = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle folder or a packed .dkb file.", show_default=False)
]
_Packed = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.dkb", help="The file to write. Default: beside BUNDLE, as NAME.dkb."),
]
_Folder = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="PATH", help="The folder to write. Default: beside it, as NAME.bundle."),
]


@app.command()
def verify(bundle: _Bundle, json: console.Json = False) -> None:
    """Check every file against the manifest.

    Nothing may be missing, altered, added or linked. Ends with 0 when the bundle is whole and with 1 when it is
    refused. Nothing is loaded.
    """
    from deploykit.errors import BundleError
    from deploykit.report.model import size_text
    from deploykit.runtime import Bundle

    try:
        opened = Bundle.open(bundle)
        opened.verify()
    except BundleError as error:
        if not bundle.exists():
            raise
        if json:
            console.print_json({"bundle": bundle, "passed": False, "reason": error.message, "hint": error.hint})
        console.say(f"refused: {error}")
        raise typer.Exit(1) from None
    files = opened.manifest.files
    size = sum(entry.size for entry in files.values())
    if json:
        console.print_json(
            {"bundle": bundle, "passed": True, "files": len(files), "bytes": size, "digest": opened.digest}
        )
    else:
        typer.echo(f"{bundle} is whole: {len(files)} files, {size_text(size)}, manifest sha256 {opened.digest}")


@app.command()
def selftest(bundle: _Bundle, json: console.Json = False) -> None:
    """Run every variant here and compare.

    Raw inputs go in, the stored vectors must come out. It tests the preprocessing too. Ends with 1 when a
    variant fails, and with 4 when none can run here.
    """
    from dataclasses import asdict

    from deploykit.report.terminal import table
    from deploykit.runtime import Bundle
    from deploykit.runtime.selftest import selftest as run_selftest

    results = run_selftest(Bundle.open(bundle))
    failed = any(r.status == "failed" for r in results)
    passed = not failed and any(r.status == "passed" for r in results)
    if json:
        console.print_json({"bundle": bundle, "passed": passed, "variants": [asdict(r) for r in results]})
    else:
        typer.echo(table(("variant", "status", "worst cosine", "p50 ms", "why"), [_cells(r) for r in results]))
    if not passed:
        raise typer.Exit(1 if failed else console.EXIT_MISSING)


def _cells(result: VariantResult) -> tuple[str, ...]:
    from deploykit.report.model import cosine_text, number

    cosine = "" if result.cosine_min is None else cosine_text(result.cosine_min)
    p50_ms = "" if result.p50_ms is None else number(result.p50_ms)
    return (result.variant, result.status, cosine, p50_ms, result.reason)


@app.command()
def pack(bundle: _Bundle, output: _Packed = None, json: console.Json = False) -> None:
    """Make one file of a bundle.

    Every command takes the .dkb file like the folder.

    Example: deploykit bundle pack minilm.bundle -o minilm.dkb
    """
    from deploykit.bundle import pack as library

    _tell(library.pack(bundle, output or bundle.with_suffix(".dkb")), json)


@app.command()
def unpack(bundle: _Bundle, output: _Folder = None, json: console.Json = False) -> None:
    """Make a folder of a packed bundle again.

    Every file is checked on the way.

    Example: deploykit bundle unpack minilm.dkb -o minilm.bundle
    """
    from deploykit.bundle import pack as library

    _tell(library.unpack(bundle, output or bundle.with_suffix(".bundle")), json)


def _tell(written: Path, json: bool) -> None:
    if json:
        console.print_json({"output": written})
    else:
        typer.echo(str(written))
