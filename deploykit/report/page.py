"""The frame of every HTML report: one file, no script, nothing fetched."""

from __future__ import annotations

from html import escape
from importlib import resources

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>{body}</main></body>
</html>
"""


def page(title: str, body: str, *styles: str) -> str:
    """A document around ``body``, which is HTML already. ``styles`` are added to the style of all reports."""
    folder = resources.files("deploykit.report")
    style = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", *styles))
    return _PAGE.format(title=escape(title), style=style, body=body)


def section(title: str, body: str) -> str:
    """A section, or nothing when it has nothing to say."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""
