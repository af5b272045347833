"""The names of files inside a bundle: which are allowed, and how one becomes a path that cannot leave the folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from deploykit.runtime.errors import BundleError

MAX_NAME_LENGTH = 240

# What an engine, Python or a system would execute or unpickle.
EXECUTABLE_SUFFIXES = frozenset(
    {".so", ".dll", ".dylib", ".pyd", ".exe", ".com", ".bat", ".cmd", ".ps1", ".sh", ".jar", ".py", ".pyc", ".pyz"}
    | {".pkl", ".pickle", ".joblib", ".pt", ".pth"}
)
# TensorRT engines are machine code. They are built on the device; no bundle holds one, signed or not.
ENGINE_SUFFIXES = frozenset({".engine", ".plan", ".trt"})
# Names that Windows gives to devices, with any suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE)


def check_name(name: str) -> None:
    """`BundleError` unless ``name`` is a plain relative path with ``/``, the same file on every operating system."""
    reason = _fault(name)
    if reason:
        raise BundleError(
            f"the bundle holds a file with the name {name!r}, which {reason}",
            hint="do not use it: a bundle written by deploykit has no such name",
        )


def check_distinct(names: Iterable[str]) -> None:
    """`BundleError` when two names are one file on a system that ignores case or composes accents."""
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise BundleError(
                f"the bundle holds both '{seen[key]}' and '{name}', which are one file on some systems",
                hint="rename one of them and build the bundle again",
            )
        seen[key] = name


def inside(root: Path, name: str) -> Path:
    """The path of the bundle's file ``name``; `BundleError` when the name would leave ``root``."""
    check_name(name)
    return root / name


def _fault(name: str) -> str:
    if not name or len(name) > MAX_NAME_LENGTH:
        return f"is empty or longer than {MAX_NAME_LENGTH} characters"
    if any(c in '\\:<>"|?*' or unicodedata.category(c)[0] == "C" for c in name):
        return "holds a backslash, a colon, a control character or another that Windows forbids"
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        return "is absolute or leaves its folder"
    if any(part != part.rstrip(". ") for part in name.split("/")):
        return "has a part that ends in a dot or a space"
    if any(_DEVICES.match(part) for part in name.split("/")):
        return "is the name of a device on Windows"
    if PurePosixPath(name).suffix.lower() in ENGINE_SUFFIXES:
        return "is an engine, machine code from elsewhere: engines are built on the device"
    suffixes = {s.lower() for s in PurePosixPath(name).suffixes}
    executable = PurePosixPath(name).suffix.lower() in EXECUTABLE_SUFFIXES or ".so" in suffixes
    return "is a program, a library or a pickle" if executable else ""
