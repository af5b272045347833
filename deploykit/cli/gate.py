"""``deploykit gate``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import console

if TYPE_CHECKING:
    from deploykit.gate import AaResult, Result

# A log that says nothing for minutes looks like one of a job that hangs.
_LINE_S = 60.0
_EXITS = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}

_CANDIDATE = typer.Argument(
    metavar="CANDIDATE",
    help="What is checked: a bundle, or NAME.bundle@openvino-int8; without a name the variant that is loaded here.",
    show_default=False,
)
_BASELINE = typer.Option(
    "--baseline",
    metavar="BASELINE",
    help="The bundle that is good enough today. Without a variant: the candidate's if that is named, else what is "
    "loaded here.",
    show_default=False,
)
_BUDGET = typer.Option(
    "--budget",
    "-b",
    metavar="BUDGET",
    help='What may be lost: a .toml file with [budget] limits = "…", a profile, or limits such as \'drift<=0.01 '
    "p50<=+5%'. What it leaves open is 'standard drift<=+20% p50<=+3% size<=+2% memory<=+2%'; p99 stands for p50 "
    "too, throughput for that of the batch.",
    show_default=False,
)
_DATA = typer.Option(
    "--data",
    "-d",
    metavar="DATA",
    help="What to encode and to time with, as for `deploykit drift`; labels or scored pairs are judged too. Default: "
    "the baseline's self-test inputs and deploykit's own.",
    show_default=False,
)
_WORKLOAD = typer.Option(
    metavar="NAME",
    help="Time one workload alone: single (one input) or batch (8 inputs). Default: both.",
    show_default=False,
)
_DIGEST = typer.Option(
    "--baseline-digest", metavar="SHA256", help="Refuse any other baseline: its digest, or 8 digits and more of it."
)
_PYTHON = typer.Option(
    "--python", metavar="PATH", help="The interpreter that runs the candidate. Default: this one.", show_default=False
)
_BASELINE_PYTHON = typer.Option(
    "--baseline-python",
    metavar="PATH",
    help="The one that runs the baseline: with two, versions of an engine are compared.",
    show_default=False,
)
_AA = typer.Option(
    "--aa",
    metavar="N",
    min=1,
    help="Time the candidate against itself N times instead: how often this machine gives false alarms, and how small "
    "a change it can see. Takes limits on a change alone, as p50<=+3%.",
    show_default=False,
)
_CALIBRATION = typer.Option(
    "--calibration",
    metavar="FILE",
    help="What an earlier --aa wrote with -o: quoted beside the verdict, and refused on other hardware.",
    show_default=False,
)
_MAX_MINUTES = typer.Option(
    "--max-minutes",
    metavar="N",
    help="Begin no pair that would end later than this, counted from the start; what is not decided is INCONCLUSIVE. "
    "Default: as long as it takes, which is told at the start.",
    show_default=False,
)
_RETRAINED = typer.Option(
    "--retrained",
    help="The candidate was trained again, so that its vectors are others: judge the task of each side with a probe "
    "fitted to it, or its own cosines, and no drift. Takes --data with labels or scored pairs.",
)
_ALL = typer.Option("--all", help="Look at everything, also when something has failed already.")
_SEED = typer.Option(metavar="N", min=0, help="Decides which side of each pair runs first.")
_THREADS = typer.Option(metavar="N", min=1, help="Threads to compute with. Default: every core it may use.")
_OUTPUT = typer.Option("--output", "-o", metavar="FILE", help="Write the whole result here, as JSON.")
_JUNIT = typer.Option("--junit", metavar="FILE", help="Write JUnit XML: a row is a case, undecided ones are skipped.")
_SUMMARY = typer.Option(
    "--summary",
    metavar="FILE",
    help="Write a page of Markdown; 'github' adds it to the file that $GITHUB_STEP_SUMMARY names.",
)
_HTML = typer.Option("--html", metavar="FILE", help="Write a page for a browser: one file, no scripts.")
_ANNOTATIONS = typer.Option("--annotations", help="Print a GitHub workflow command when it does not pass.")


def gate(
    candidate: Annotated[str, _CANDIDATE],
    baseline: Annotated[str | None, _BASELINE] = None,
    budget: Annotated[str | None, _BUDGET] = None,
    data: Annotated[str | None, _DATA] = None,
    workload: Annotated[str | None, _WORKLOAD] = None,
    baseline_digest: Annotated[str | None, _DIGEST] = None,
    python: Annotated[Path | None, _PYTHON] = None,
    baseline_python: Annotated[Path | None, _BASELINE_PYTHON] = None,
    aa: Annotated[int | None, _AA] = None,
    calibration: Annotated[Path | None, _CALIBRATION] = None,
    max_minutes: Annotated[float | None, _MAX_MINUTES] = None,
    retrained: Annotated[bool, _RETRAINED] = False,
    everything: Annotated[bool, _ALL] = False,
    seed: Annotated[int, _SEED] = 0,
    threads: Annotated[int | None, _THREADS] = None,
    output: Annotated[Path | None, _OUTPUT] = None,
    junit: Annotated[Path | None, _JUNIT] = None,
    summary: Annotated[Path | None, _SUMMARY] = None,
    html: Annotated[Path | None, _HTML] = None,
    annotations: Annotated[bool, _ANNOTATIONS] = False,
    json: console.Json = False,
) -> None:
    """Judge a bundle against the one that is in use.

    Precision and fusions are counted, vectors compared, and times taken in pairs of fresh processes; each answer is
    PASS, FAIL, or INCONCLUSIVE where this machine cannot tell. Ends with 0, 1 and 3. A gate that cannot run leaves its
    reason in the files that were asked for.

    Example: deploykit gate new.bundle --baseline old.bundle --data texts.txt
    """
    from deploykit import gate as library

    outputs = Outputs(output, junit, _summary_path(summary), html, annotations, json)
    outputs.check()
    choices = library.Choices(
        budget,
        data,
        workload,
        threads,
        everything,
        seed,
        baseline_digest or "",
        calibration,
        python,
        baseline_python,
        max_minutes,
        retrained,
    )
    if aa is not None:
        _refuse_with_aa(
            {
                "--baseline": baseline,
                "--junit": junit,
                "--baseline-digest": baseline_digest,
                "--baseline-python": baseline_python,
                "--calibration": calibration,
                "--retrained": retrained or None,
                "--all": everything or None,
                "--annotations": annotations or None,
            }
        )
        with outputs.also_without_verdict(candidate, None):
            noise = _aa(candidate, aa, choices)
        _show_aa(noise, outputs)
        return
    with outputs.also_without_verdict(candidate, baseline):
        result = _gate(candidate, baseline, choices)
    _show(result, outputs)


def _gate(candidate: str, baseline: str | None, choices: object) -> Result:
    from deploykit import gate as library
    from deploykit.errors import RecipeError

    assert isinstance(choices, library.Choices)
    if baseline is None:
        raise RecipeError(
            "nothing says what to compare with",
            hint="name the bundle that is in use: --baseline old.bundle; or --aa 5 for this machine's noise",
        )
    with console.Progress(every_s=_LINE_S) as progress:
        progress.begin("opening")
        return library.gate(candidate, baseline, choices, progress.update, on_estimate=progress.note)


def _aa(candidate: str, runs: int, choices: object) -> AaResult:
    from deploykit import gate as library

    assert isinstance(choices, library.Choices)
    with console.Progress(every_s=_LINE_S) as progress:
        progress.begin("opening")
        return library.aa(candidate, runs, choices, progress.update, on_estimate=progress.note)


def _show(result: Result, outputs: Outputs) -> None:
    from deploykit.gate import outputs as forms
    from deploykit.gate import text
    from deploykit.report import gate_html

    outputs.write(result.to_json(), forms.junit(result), forms.markdown(result), gate_html.render(result))
    if outputs.json:
        console.print_json(result.to_json())
    else:
        typer.echo(text.render(result, shutil.get_terminal_size((100, 24)).columns), nl=False)
    outputs.annotate(forms.annotation(result))
    _end(_EXITS[result.status])


def _show_aa(result: AaResult, outputs: Outputs) -> None:
    from deploykit.gate import outputs as forms
    from deploykit.gate import text
    from deploykit.report import gate_html

    outputs.write(result.to_json(), "", forms.aa_markdown(result), gate_html.render_aa(result))
    if outputs.json:
        console.print_json(result.to_json())
    else:
        typer.echo(text.render_aa(result, shutil.get_terminal_size((100, 24)).columns), nl=False)
    undecided = result.stopped or result.count("INCONCLUSIVE") * 2 > result.runs
    _end(1 if result.count("FAIL") else 3 if undecided else 0)


@dataclass(frozen=True)
class Outputs:
    """The files that a gate leaves, and what it prints beside its text."""

    output: Path | None
    junit: Path | None
    page: Path | None
    html: Path | None
    annotations: bool
    json: bool

    def check(self) -> None:
        """Refuse what could not be written, before minutes of work."""
        from deploykit.output import check_output

        for path in (self.output, self.junit, self.page, self.html):
            if path is not None:
                check_output(path, "gate.json")

    def write(self, data: dict[str, object], junit: str, page: str, html: str) -> None:
        """Write what was asked for."""
        from deploykit.gate.outputs import write

        document = dumps(data, indent=1, ensure_ascii=False, default=str) + "\n"
        for text, path in ((document, self.output), (junit, self.junit), (html, self.html)):
            if path is not None:
                write(text, path)
        if self.page is not None:
            write(page, self.page, append=_is_step_summary(self.page))

    def annotate(self, command: str) -> None:
        """Print a workflow command. They are read from either stream; stdout belongs to --json."""
        if self.annotations and command:
            typer.echo(command, err=self.json)

    @contextmanager
    def also_without_verdict(self, candidate: str, baseline: str | None) -> Iterator[None]:
        """What ends the block leaves its reason in every file: a report that is empty says nothing in a pipeline."""
        from deploykit.gate import Unjudged
        from deploykit.gate import outputs as forms
        from deploykit.report import gate_html

        try:
            yield
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            message = str(getattr(error, "message", "") or f"{type(error).__name__}: {first}")
            hint = str(getattr(error, "hint", ""))
            failed = Unjudged(candidate, baseline or "", type(error).__name__, message, hint)
            pages = (forms.markdown_unjudged(failed), gate_html.render_unjudged(failed))
            self.write(failed.to_json(), forms.junit_unjudged(failed), *pages)
            self.annotate(forms.annotation_unjudged(failed))
            raise


def _end(code: int) -> None:
    if code:
        raise typer.Exit(code)


def _summary_path(summary: Path | None) -> Path | None:
    from deploykit.errors import RecipeError

    if summary is None or str(summary) != "github":
        return summary
    named = os.environ.get("GITHUB_STEP_SUMMARY", "")
    if not named:
        raise RecipeError("--summary github, and GITHUB_STEP_SUMMARY is not set", hint="name a file instead")
    return Path(named)


def _is_step_summary(page: Path) -> bool:
    """Steps share that file: what others wrote stays."""
    return str(page) == os.environ.get("GITHUB_STEP_SUMMARY", "")


def _refuse_with_aa(given: dict[str, object]) -> None:
    from deploykit.errors import RecipeError

    for option, value in given.items():
        if value is not None:
            raise RecipeError(f"{option} means nothing with --aa", hint="--aa times one bundle against itself")
