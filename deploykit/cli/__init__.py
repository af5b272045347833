"""The command line: one file a command, which parses, calls one library function and renders what it returns."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; ``arguments`` None takes those of the process."""
    import sys

    from deploykit.cli import app, console

    return console.run(app.app, list(sys.argv[1:] if arguments is None else arguments))
