"""``deploykit doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from deploykit.cli import console
from deploykit.runtime.install import pip_install

if TYPE_CHECKING:
    from deploykit.doctor import Findings


def doctor(json: console.Json = False) -> None:
    """Show what works on this machine.

    Engines that load, packages, CPU features, folders and telemetry. Ends with 4 when no engine loads.
    """
    from deploykit import doctor as library

    findings = library.examine()
    if json:
        console.print_json({**asdict(findings), "usable": findings.usable})
    else:
        _print(findings)
    if not findings.usable:
        console.say(f"error: no engine loads here\n  → {pip_install('ort')}, or {pip_install('openvino')}")
        raise typer.Exit(console.EXIT_MISSING)


def _print(findings: Findings) -> None:
    from deploykit.report.model import size_text

    sections = {
        "machine": {
            "python": f"{findings.python} on {findings.system}",
            "cpu": f"{findings.cpu or 'unknown'} ({findings.architecture})",
            "features": ", ".join(findings.features) or "none that matter",
            "cores": f"{findings.cores} usable",
        },
        "engines": {e.name: f"{e.state} {e.detail}".rstrip() for e in findings.engines},
        "packages": {name: found or "not installed" for name, found in findings.packages.items()},
        "folders": {f.role: f"{f.path} ({size_text(f.bytes)})" for f in findings.folders},
        "telemetry": findings.telemetry,
    }
    width = max(len(label) for rows in sections.values() for label in rows)
    for title, rows in sections.items():
        typer.echo(title)
        for label, value in rows.items():
            typer.echo(f"  {label:<{width}}  {value}")
