"""Reports on a bundle, four forms of the same rows: data, terminal text, Markdown and one self-contained HTML file."""

from __future__ import annotations

import json
from pathlib import Path

from deploykit.output import write_text
from deploykit.report import html, markdown, model, terminal
from deploykit.runtime.manifest import Manifest

FORMS = ("html", "md", "json")


def write(manifest: Manifest, bundle: Path) -> Path:
    """Write the report of the bundle at ``bundle`` beside it; returns the HTML file.

    ``minilm.bundle`` gets ``minilm.report.html``, ``.md`` and ``.json``. Each file is replaced in one rename.
    """
    report = model.from_manifest(manifest, str(bundle))
    texts = {
        "html": html.render(report),
        "md": markdown.render(report),
        "json": json.dumps(model.result(manifest), indent=1, sort_keys=True) + "\n",
    }
    for form, path in paths(bundle).items():
        write_text(path, texts[form])
    return paths(bundle)["html"]


def paths(bundle: Path) -> dict[str, Path]:
    """Where `write` puts each form."""
    return {form: bundle.with_name(f"{bundle.name.removesuffix('.bundle')}.report.{form}") for form in FORMS}


def text(manifest: Manifest, location: str, width: int = 100) -> str:
    """The report as plain text."""
    return terminal.render(model.from_manifest(manifest, location), width)
