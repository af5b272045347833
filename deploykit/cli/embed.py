"""``deploykit embed``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.cli import console

if TYPE_CHECKING:
    import numpy as np

    from deploykit.runtime.selection import Report

_BUNDLE = typer.Argument(
    metavar="BUNDLE",
    help="A bundle folder or .dkb file; NAME.bundle@openvino-bf16 asks for one variant.",
    show_default=False,
)
_INPUTS = typer.Argument(
    metavar="INPUT",
    help="What to embed: .txt (a text a line), .jsonl, .csv, .tsv, .parquet, an image, a sound, a folder of these, "
    ".npz, builtin:sentences, or - for lines on stdin.",
    show_default=False,
)
_OUTPUT = typer.Option("--output", "-o", metavar="FILE.npy", help="Write the vectors here: float32, one row an input.")
_KIND = typer.Option(metavar="NAME", help="Which prompt to use, where the model has several: query, passage, ….")
_COLUMN = typer.Option(
    metavar="NAME",
    help="The column of a table that holds the inputs, or its number from 1 where there is no header. "
    "Default: text, sentence, image, audio, ….",
)
_THREADS = typer.Option(metavar="N", min=1, help="Threads to compute with. Default: every core it may use.")
_SIGNED = typer.Option(metavar="KEY.pub", help="Refuse a bundle that this public Ed25519 key has not signed.")
_JSON = typer.Option("--json", help="Print each vector as a line of JSON; with -o one JSON document about the run.")


def embed(
    bundle: Annotated[str, _BUNDLE],
    inputs: Annotated[list[str], _INPUTS],
    output: Annotated[Path | None, _OUTPUT] = None,
    kind: Annotated[str | None, _KIND] = None,
    column: Annotated[str | None, _COLUMN] = None,
    threads: Annotated[int | None, _THREADS] = None,
    require_signature: Annotated[Path | None, _SIGNED] = None,
    json: Annotated[bool, _JSON] = False,
) -> None:
    """Turn texts, images or sounds into vectors.

    Runs the bundle's fastest variant that works on this machine, without torch.

    Example: deploykit embed minilm.bundle texts.txt -o vectors.npy
    """
    from deploykit import runtime, vectors
    from deploykit.errors import RecipeError

    if output is None and not json:
        raise RecipeError("nothing says where the vectors go", hint="add -o vectors.npy, or --json to print them")
    if output is not None:
        vectors.check_output(output)
    with (
        runtime.load(bundle, threads=threads, require_signature=require_signature) as encoder,
        console.Progress() as progress,
    ):
        found = vectors.gather(inputs, encoder.modality, column=column, stdin=sys.stdin.buffer)
        report = encoder.report()
        console.say(f"{len(found):,} inputs{f' as {kind}' if kind else ''}, {report}")
        progress.begin("embedding")
        rows = vectors.encode(
            encoder, found.inputs, kind=kind, on_progress=lambda done: progress.update(f"{done:,} of {len(found):,}")
        )
        facts = {"count": rows.shape[0], "dim": rows.shape[1], "output": output, **_as_data(report)}
    if output is None:
        _print_lines(found.inputs, rows)
        return
    vectors.save(rows, output)
    if json:
        console.print_json(facts)
    else:
        typer.echo(f"{output}: {rows.shape[0]:,} vectors of {rows.shape[1]} float32")


def _as_data(report: Report) -> dict[str, Any]:
    passed_over, effective = dict(report.passed_over), dict(report.effective)
    return {"variant": report.variant, "why": report.why, "passed_over": passed_over, "effective": effective}


def _print_lines(inputs: Sequence[Any], rows: np.ndarray) -> None:
    for index, (item, row) in enumerate(zip(inputs, rows, strict=True)):
        named = {"input": str(item)} if isinstance(item, (str, Path)) else {}
        print(dumps({"index": index, **named, "embedding": [float(f"{x:.9g}") for x in row]}, ensure_ascii=False))
