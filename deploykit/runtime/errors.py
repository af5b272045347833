"""What the device half raises.

Every error says the thing, the fact and the fix: ``message`` holds the first two, ``hint`` the third.
The whole tree, with the errors of the build half, is drawn in `deploykit.errors`.
"""

from __future__ import annotations

from typing import ClassVar


class DeploykitError(Exception):
    """Base of everything that deploykit raises on purpose.

    ``exit_code`` is what the command line ends with: 1 a check failed, 2 wrong usage or input, 3 could not
    decide, 4 something needed is missing here.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class InputError(DeploykitError):
    """Something handed to an encoder (a text, an image, a waveform, a tensor) cannot be encoded."""


class NoTokensError(InputError):
    """A text that the tokenizer has no tokens for: there is nothing to encode."""


class UnknownNameError(DeploykitError):
    """A name that is not one of the known ones; the hint gives the nearest."""


class BundleError(DeploykitError):
    """A bundle is refused: a file is missing, altered, unlisted, or the manifest is wrong."""


class MissingError(DeploykitError):
    """A package, an engine, a device or a permission that is needed is not here."""

    exit_code = 4


class CheckError(DeploykitError):
    """A check was run and failed."""

    exit_code = 1


class SelfTestError(CheckError):
    """A bundle's variant does not reproduce its reference vectors on this machine."""


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """A hint that names the closest known names, or all of them when none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    return "known: " + ", ".join(sorted(known)) if known else "nothing is registered under this kind"
