"""``deploykit inspect``."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import console

_BUNDLE = typer.Argument(
    metavar="BUNDLE",
    help="A bundle folder or a packed .dkb file; NAME.bundle@VARIANT shows one variant alone.",
    show_default=False,
)


def inspect(
    bundle: Annotated[Path, _BUNDLE],
    json: console.Json = False,
) -> None:
    """Show what a bundle holds and what was proven.

    Its encoder; for each variant the proof, what really runs, latency and size; the variants that were refused, and
    why. Nothing is loaded or measured. `deploykit bundle verify` checks the files.

    Example: deploykit inspect minilm.bundle
    """
    from deploykit import report
    from deploykit.runtime import Bundle
    from deploykit.runtime.loading import split_variant

    place, name = split_variant(bundle)
    manifest = Bundle.open(place).manifest
    if name is not None:
        manifest = replace(manifest, variants=(manifest.variant(name),), refused=())
    if json:
        console.print_json(report.model.result(manifest))
    else:
        typer.echo(report.text(manifest, str(place), shutil.get_terminal_size((100, 24)).columns), nl=False)
