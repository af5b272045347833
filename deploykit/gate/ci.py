"""Pipelines of continuous integration that gate every change of a project: GitHub and GitLab.

They call the command itself, so that a project needs nothing but the package. Values of the user come in as variables
and stand in single quotes of YAML: what is written in a file's name never becomes a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import deploykit
from deploykit.errors import InputError, RecipeError, UnknownNameError, nearest
from deploykit.output import write_text

#: Where each system's file stands.
PLACES = {"github": ".github/workflows/deploykit-gate.yml", "gitlab": ".gitlab/deploykit-gate.yml"}
SYSTEMS = tuple(PLACES)
#: What GitLab reads the file by.
INCLUDE = "include:\n  - local: .gitlab/deploykit-gate.yml"
_EXTRAS = "gate,ort,openvino,text,image,audio,parquet"


@dataclass(frozen=True)
class Pipeline:
    """What is gated. ``data`` and ``budget`` are empty for the gate's defaults."""

    candidate: str
    baseline: str
    data: str = ""
    budget: str = ""


def write(folder: Path, gate: Pipeline, systems: Sequence[str] = SYSTEMS) -> list[Path]:
    """Write the file of each system below ``folder``; the paths. Nothing is written if one of them is in the way.

    `UnknownNameError` for a system, `InputError` without the folder, `RecipeError` for a file that is there already or
    a value that fits on no line.
    """
    for system in systems:
        if system not in PLACES:
            raise UnknownNameError(f"there is no pipeline for '{system}'", hint=nearest(system, SYSTEMS))
    if not folder.is_dir():
        raise InputError(f"there is no folder '{folder}'", hint="give the project's folder")
    for name, value in vars(gate).items():
        if not value.isprintable():
            raise RecipeError(f"the {name} {value!r} has characters that fit on no line", hint="rename it")
    paths = {system: folder / PLACES[system] for system in dict.fromkeys(systems)}
    for path in paths.values():
        if path.exists() or path.is_symlink():
            raise RecipeError(f"'{path}' is there already", hint="move it away first; it is never written over")
    for system, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _github(gate) if system == "github" else _gitlab(gate))
    return list(paths.values())


def _variables(gate: Pipeline, indent: str) -> str:
    """The lines of the variables, and none for what is left to the defaults."""
    # By place, not by name: a name on an index is whoever claimed it first.
    values = {"DEPLOYKIT": f"./deploykit-{deploykit.__version__}"}
    values |= {"CANDIDATE": gate.candidate, "BASELINE": gate.baseline, "DATA": gate.data, "BUDGET": gate.budget}
    return "\n".join(f"{indent}{name}: {_quoted(value)}" for name, value in values.items() if value)


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _command(gate: Pipeline, summary: str) -> str:
    options = ['--baseline "$BASELINE"']
    options += ['--data "$DATA"'] if gate.data else []
    options += ['--budget "$BUDGET"'] if gate.budget else []
    options += ["--max-minutes 30", f"{summary}-o gate/result.json", "--junit gate/junit.xml --html gate/gate.html"]
    return f'deploykit gate {" ".join(options)} -- "$CANDIDATE"'


def _github(gate: Pipeline) -> str:
    return f"""\
# Is this change's encoder as good and as fast as the one in use? FAIL fails the job; a runner that is too noisy to tell
# (exit code 3) only warns.
name: deploykit gate

on:
  pull_request:

permissions:
  contents: read

jobs:
  gate:
    runs-on: ubuntu-latest
    timeout-minutes: 60
    env:
      # DEPLOYKIT: a checkout or a wheel of deploykit that this repository holds, or fetches in a step of its own.
{_variables(gate, "      ")}
    steps:
      - uses: actions/checkout@v4
        with:
          persist-credentials: false
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - name: Install deploykit
        run: pip install "$DEPLOYKIT[{_EXTRAS}]"
      - name: Build the candidate and fetch the baseline
        run: |
          echo "replace this step: it makes $CANDIDATE, and fetches $BASELINE"
          test -e "${{CANDIDATE%@*}}" && test -e "${{BASELINE%@*}}"
      - name: Gate
        run: |
          mkdir -p gate
          code=0
          {_command(gate, "--summary github --annotations ")} || code=$?
          if [ "$code" -eq 3 ]; then exit 0; fi
          exit "$code"
      - uses: actions/upload-artifact@v4
        if: always()
        with:
          name: gate
          path: gate
"""


def _gitlab(gate: Pipeline) -> str:
    return f"""\
# Is this change's encoder as good and as fast as the one in use? FAIL fails the job; a runner that is too noisy to tell
# (exit code 3) only warns. Included by .gitlab-ci.yml.
deploykit-gate:
  image: python:3.11
  timeout: 60 minutes
  rules:
    - if: $CI_PIPELINE_SOURCE == "merge_request_event"
  variables:
    # DEPLOYKIT: a checkout or a wheel of deploykit that this repository holds, or fetches before.
{_variables(gate, "    ")}
  script:
    - pip install "$DEPLOYKIT[{_EXTRAS}]"
    # Replace this: it makes $CANDIDATE, and fetches $BASELINE.
    - test -e "${{CANDIDATE%@*}}" && test -e "${{BASELINE%@*}}"
    - mkdir -p gate
    - >-
      {_command(gate, "")}
  allow_failure:
    exit_codes: [3]
  artifacts:
    when: always
    paths: [gate]
    reports:
      junit: gate/junit.xml
"""
