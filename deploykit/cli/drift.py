"""``deploykit drift``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli import console

_EXITS = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}

_REFERENCE = typer.Argument(
    metavar="REFERENCE",
    help="What counts as right: a bundle or one of its variants, mostly NAME.bundle@portable, or an .npy of vectors "
    "that `deploykit embed` wrote.",
    show_default=False,
)
_CANDIDATE = typer.Argument(
    metavar="CANDIDATE",
    help="What is checked: a bundle, NAME.bundle@openvino-int8, or an .npy of vectors in the same order.",
    show_default=False,
)
_DATA = typer.Option(
    "--data",
    "-d",
    metavar="DATA",
    help="What to encode with both: .txt (a text a line), .jsonl, .csv, .tsv, .parquet, a folder of images or sounds, "
    ".npz, builtin:sentences. Labels: FILE#text=COLUMN,label=COLUMN, or class folders. Scored pairs: "
    "FILE#a=COLUMN,b=COLUMN,score=COLUMN. Columns without a header are numbered from 1. Two .npy need none.",
)
_BUDGET = typer.Option(
    "--budget",
    "-b",
    metavar="TEXT",
    help="What may be lost: strict, standard, edge, or limits such as 'drift<=0.01 p1>=0.975 task<=0.5'. "
    "Default: show the figures and judge nothing.",
)
_LABELS = typer.Option(
    "--labels/--no-labels",
    help="Measure the labelled task too; --labels insists on labels or scored pairs. Default: where the data has them.",
    show_default=False,
)
_WHERE = typer.Option(
    "--where/--no-where",
    help="Look for the layer where the drift enters. Default: when the budget fails.",
    show_default=False,
)
_KIND = typer.Option(metavar="NAME", help="Which prompt to use, where the model has several: query, passage, ….")
_THREADS = typer.Option(metavar="N", min=1, help="Threads to compute with. Default: every core it may use.")
_OUTPUT = typer.Option("--output", "-o", metavar="FILE", help="Write the whole result here, as JSON.")


def drift(
    reference: Annotated[str, _REFERENCE],
    candidate: Annotated[str, _CANDIDATE],
    data: Annotated[str | None, _DATA] = None,
    budget: Annotated[str | None, _BUDGET] = None,
    labels: Annotated[bool | None, _LABELS] = None,
    where: Annotated[bool | None, _WHERE] = None,
    kind: Annotated[str | None, _KIND] = None,
    threads: Annotated[int | None, _THREADS] = None,
    output: Annotated[Path | None, _OUTPUT] = None,
    json: console.Json = False,
) -> None:
    """Measure how far a variant's vectors have moved.

    Against the reference's: cosine, neighbours kept, and what a labelled task loses, each with its interval; the
    inputs that moved most; with a budget a verdict, and where the drift enters when it fails. Ends with 1 when the
    budget fails, and with 3 when the data cannot tell.

    Example: deploykit drift minilm.bundle@portable minilm.bundle@openvino-int8 --data texts.txt --budget standard
    """
    from deploykit import drift as library
    from deploykit.budget import Budget
    from deploykit.drift import run, text
    from deploykit.output import check_output

    limits = Budget.parse(budget) if budget is not None else None
    if output is not None:
        check_output(output, "drift.json")
    choices = library.Choices(limits, labels, where, kind, threads)
    with console.Progress() as progress:
        progress.begin("opening")
        result = library.drift(reference, candidate, data, choices, progress.update)
    if output is not None:
        run.save(result, output)
    if json:
        console.print_json(result.to_json())
    else:
        typer.echo(text.render(result, shutil.get_terminal_size((100, 24)).columns), nl=False)
    if result.verdict is not None and _EXITS[result.verdict.status]:
        raise typer.Exit(_EXITS[result.verdict.status])
