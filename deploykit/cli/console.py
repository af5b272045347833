"""What every command shares: results to stdout, all else to stderr, errors to exit codes, one line of progress."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import IO, Annotated, Any

import typer

from deploykit.errors import DeploykitError
from deploykit.runtime.install import pip_install

EXIT_MISSING, EXIT_BUG, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 4, 70, 130, 141
_PATIENCE_S = 2.0
# The extra that brings a package which only building needs; engines and preprocessing name theirs where they fail.
_EXTRAS = {
    "export": ("filelock", "torch", "onnx", "onnxscript", "onnx_ir", "transformers", "safetensors"),
    "pretrain": ("accelerate", "sklearn"),
    "tensorboard": ("tensorboard",),
}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, for other programs.")]


def run(app: typer.Typer, arguments: list[str]) -> int:
    """Run the command that ``arguments`` name; every error ends as a message on stderr and an exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in ours
    if debug:
        arguments = [a for a in ours if a != "--debug"] + arguments[len(ours) :]
    try:
        code = app(arguments, prog_name="deploykit", standalone_mode=False)
        sys.stdout.flush()
    except Exception as error:
        if debug and not isinstance(error, (_usage_error(), BrokenPipeError)):
            traceback.print_exc()
        return _report(error)
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as error:  # how the parser ends when the reader of stdout has gone away
        return _report(error.__context__) if isinstance(error.__context__, BrokenPipeError) else int(error.code or 0)
    if code == EXIT_INTERRUPTED:  # the parser has caught Ctrl-C itself
        return _interrupted()
    return code if isinstance(code, int) else 0


def print_json(value: Any) -> None:
    """``value`` as one JSON document on stdout."""
    print(json.dumps(value, indent=2, default=str, ensure_ascii=False))


def say(text: str = "") -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr)


def say_settings(title: str, settings: Mapping[str, Any]) -> None:
    """The effective settings of a command; lists are joined, None and empty ones left out."""
    say(title)
    shown = {key: value for key, value in settings.items() if value not in (None, "", [], ())}
    width = max(map(len, shown), default=0)
    for key, value in shown.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        say(f"  {key:<{width}}  {_word(text)}")


class Progress:
    """One line on a terminal that says what is going on, once it has lasted two seconds; silent everywhere else, or
    with ``every_s`` a line of it so often, for work of many minutes whose log somebody watches.
    """

    def __init__(self, stream: IO[str] | None = None, every_s: float | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live, self._every_s = self._stream.isatty(), every_s
        self._text, self._since, self._shown = "", time.monotonic(), False
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> Progress:
        if self._live or self._every_s is not None:
            threading.Thread(target=self._tick if self._live else self._log, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.clear()

    def begin(self, text: str) -> None:
        """Something new begins, called ``text``."""
        with self._lock:
            self._text, self._since = text, time.monotonic()

    def update(self, text: str) -> None:
        """The same thing has come further."""
        with self._lock:
            self._text = text

    def note(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._stream.write(("\r\x1b[K" if self._shown else "") + text + "\n")
            self._stream.flush()
            self._shown = False

    def clear(self) -> None:
        """Take the line away, to print something else."""
        with self._lock:
            if self._shown:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
            self._text, self._shown = "", False

    def _log(self) -> None:
        began = time.monotonic()
        while not self._ended.wait(self._every_s):
            with self._lock:
                if self._text and not self._ended.is_set():
                    self._stream.write(f"{(time.monotonic() - began) / 60:.0f} min: {self._text}\n")
                    self._stream.flush()

    def _tick(self) -> None:
        while not self._ended.wait(0.25):
            with self._lock:
                seconds = time.monotonic() - self._since
                if self._text and seconds > _PATIENCE_S and not self._ended.is_set():
                    self._stream.write(f"\r{self._text} … {seconds:.0f} s\x1b[K")
                    self._stream.flush()
                    self._shown = True


def _report(error: Exception) -> int:
    """Say what went wrong; the exit code that belongs to it."""
    if isinstance(error, _usage_error()):
        error.show()
        return 2
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, typer.Abort):
        return _interrupted()
    if isinstance(error, BrokenPipeError):
        # Python flushes stdout once more at exit; nobody reads it, so it goes nowhere instead of failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    if isinstance(error, DeploykitError):
        say(f"error: {error}")
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f": {error.filename}" if error.filename else ""
        say(f"error: no space left on the disk{what}\n  → free some; nothing is left half-written")
        return EXIT_MISSING
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        say(f"error: not allowed here: {error.strerror}: {error.filename}\n  → choose a path that you may write to")
        return EXIT_MISSING
    if isinstance(error, ModuleNotFoundError):
        extra = next((name for name, modules in _EXTRAS.items() if error.name in modules), "")
        say(f"error: {error.name} is not installed")
        what = pip_install(extra) if extra else f"install the package that brings {error.name}"
        say(f"  → {what}; `deploykit doctor` lists what is there")
        return EXIT_MISSING
    first = (str(error).strip().splitlines() or [""])[0]
    say(f"error: {type(error).__name__}: {first}\n  → this is a bug in deploykit; run again with --debug")
    return EXIT_BUG


def _interrupted() -> int:
    say("interrupted; nothing is half-written, and finished steps of an export or a training are kept")
    return EXIT_INTERRUPTED


def _usage_error() -> Any:
    """Base class of what the parser raises; its own package has different names in different versions of typer."""
    return typer.BadParameter.__base__


def _word(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
