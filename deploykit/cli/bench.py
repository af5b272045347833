"""``deploykit bench``."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deploykit.cli import console

_BUNDLES = typer.Argument(
    metavar="BUNDLE",
    help="A bundle folder or .dkb file; NAME.bundle@openvino-bf16 means one variant. Several must encode the same kind "
    "of input.",
    show_default=False,
)
_VARIANT = typer.Option("--variant", metavar="NAME", help="Only this variant; may be repeated. Default: all.")
_BASELINE = typer.Option(
    "--baseline",
    metavar="NAME",
    help="What to measure beside it: torch, torch-bf16, torch-compile, plain (the fp32 export in onnxruntime and in "
    "OpenVINO with default settings), none; may be repeated. Default: all whose model is within reach.",
)
_BATCH = typer.Option("--batch", metavar="N,N", help="Inputs in a call.")
_LENGTH = typer.Option(
    "--length",
    metavar="N,N",
    help="Tokens of each text, to which real texts are cut or joined; 'real' takes them as they come. Default: 16,128.",
)
_CONCURRENCY = typer.Option("--concurrency", metavar="N,N", help="Threads that call at once.")
_DATA = typer.Option(
    "--data",
    "-d",
    metavar="DATA",
    help="What to encode: .txt (a text a line), .jsonl, .csv, .tsv, .parquet, a folder of images or sounds, .npz, "
    "builtin:NAME. Default: the builtin set.",
)
_SECONDS = typer.Option("--seconds", metavar="S", help="How long each point is measured in each process.")
_ROUNDS = typer.Option("--rounds", metavar="N", help="Fresh processes of every subject, interleaved.")
_THREADS = typer.Option("--threads", metavar="N", help="Threads to compute with. Default: every core it may use.")
_SEED = typer.Option("--seed", metavar="N", help="Draws the inputs and the order of the processes.")
_OUTPUT = typer.Option(
    "--output", "-o", metavar="FILE", help="Write the whole result here, as JSON; all else is made of it."
)
_HTML = typer.Option("--html", metavar="FILE", help="Write a report with plots here, one file without scripts.")
_MARKDOWN = typer.Option("--markdown", metavar="FILE", help="Write a report for a pull request here.")
_APPEND = typer.Option(
    "--append", metavar="FOLDER", help="Add a line to this machine's history, for `deploykit report history FOLDER`."
)


def bench(
    bundles: Annotated[list[str], _BUNDLES],
    variant: Annotated[list[str] | None, _VARIANT] = None,
    baseline: Annotated[list[str] | None, _BASELINE] = None,
    batch: Annotated[str, _BATCH] = "1,8,32",
    length: Annotated[str | None, _LENGTH] = None,
    concurrency: Annotated[str, _CONCURRENCY] = "1",
    data: Annotated[str | None, _DATA] = None,
    seconds: Annotated[float, _SECONDS] = 1.0,
    rounds: Annotated[int, _ROUNDS] = 3,
    threads: Annotated[int | None, _THREADS] = None,
    seed: Annotated[int, _SEED] = 0,
    output: Annotated[Path | None, _OUTPUT] = None,
    html: Annotated[Path | None, _HTML] = None,
    markdown: Annotated[Path | None, _MARKDOWN] = None,
    append: Annotated[Path | None, _APPEND] = None,
    json: console.Json = False,
) -> None:
    """Measure latency, throughput, start-up and memory.

    Every variant beside honest baselines, in fresh processes that take turns, with intervals and what disturbed them.
    Ends with 4 when something that was asked for could not be measured.

    Example: deploykit bench minilm.bundle --data texts.txt --html report.html
    """
    from deploykit.measure import bench as library
    from deploykit.measure import history, result
    from deploykit.output import check_output
    from deploykit.report.model import clean

    for path in filter(None, (output, html, markdown)):
        check_output(path, "result.json")
    if append is not None:
        history.check_folder(append)
    choices = library.Choices(
        variants=_names(variant) or (),
        baselines=_names(baseline),
        batches=_numbers("--batch", batch),
        lengths=None if length is None else _words(length),
        concurrency=_numbers("--concurrency", concurrency),
        data=data,
        seconds=seconds,
        rounds=rounds,
        threads=threads,
        seed=seed,
    )
    command = shlex.join(["deploykit", *sys.argv[1:]])
    with console.Progress() as progress:
        progress.begin("opening")
        found = library.bench(bundles, choices, lambda text: progress.begin(clean(text)), command)
    if output is not None:
        result.save(found, output)
    if append is not None:
        console.say(f"history: {history.append(found, append)}")
    write_forms(found, html, markdown)
    if json:
        console.print_json(found)
    else:
        show(found)
    for item in found["unavailable"]:
        console.say(clean(f"not measured: {item['name']}: {item['reason']}"))
    asked = set(choices.baselines or ())
    if any(item["kind"] == "variant" or asked & _called(item["name"]) for item in found["unavailable"]):
        raise typer.Exit(console.EXIT_MISSING)


def write_forms(found: Mapping[str, Any], html: Path | None, markdown: Path | None) -> None:
    """The report of a result, in the forms that were asked for."""
    from deploykit.output import write_text
    from deploykit.report import bench_html, bench_markdown, bench_model

    report = bench_model.from_result(found)
    if html is not None:
        write_text(html, bench_html.render(report))
        console.say(f"report: {html}")
    if markdown is not None:
        write_text(markdown, bench_markdown.render(report))
        console.say(f"report: {markdown}")


def show(found: Mapping[str, Any]) -> None:
    """The report of a result on stdout."""
    from deploykit.report import bench_model, bench_terminal

    width = shutil.get_terminal_size((100, 24)).columns
    typer.echo(bench_terminal.render(bench_model.from_result(found), width), nl=False)


def _names(given: list[str] | None) -> tuple[str, ...] | None:
    return None if not given else tuple(name for item in given for name in _words(item))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(option: str, text: str) -> tuple[int, ...]:
    from deploykit.errors import InputError

    words = _words(text)
    for word in words:
        if not re.fullmatch("-?[0-9]{1,9}", word):
            raise InputError(f"{option} is '{text}'", hint="give whole numbers with commas between them: 1,8,32")
    return tuple(int(word) for word in words)


def _called(name: str) -> set[str]:
    """All that a baseline of the result can be asked for as; with several bundles its bundle stands in front."""
    bare = name.rpartition("@")[2]
    return {bare, "all", *(["plain"] if bare.startswith("plain-") else [])}
