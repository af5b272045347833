"""Choices that are remembered: what trials found on this machine, kept for this user.

::

    CACHE/choices/<key>.json     mode 0600, in a folder of mode 0700

The key is a digest of all that the result hangs on (`wanted`), and the file repeats it. A file appears by one rename,
so any number of processes may write at once. No clock is read. Whatever is wrong with a file or the folder is a
sentence for the report, never an error: the trials are run again. Deleting the folder is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from deploykit.runtime.archive import cache_folder
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.engines import EngineOptions
from deploykit.runtime.errors import BundleError
from deploykit.runtime.hardware import usable_cores
from deploykit.runtime.manifest import Variant, from_json
from deploykit.runtime.selection import Device, Prefer, engine_version, installed
from deploykit.runtime.selftest import VariantResult

SCHEMA: Final = "deploykit.choice/1"
_MAX_BYTES: Final = 1 << 18
# A file has about two kilobytes; old ones (of bundles that are gone, of engines since upgraded) go when there are more.
_MAX_FILES: Final = 200


@dataclass(frozen=True)
class Stored:
    """The content of one file. ``provisional`` says why the choice is to be made again; empty where it is settled."""

    schema: str
    wanted: dict[str, Any]
    results: tuple[VariantResult, ...]
    provisional: str = ""


def folder() -> Path:
    """Where choices are kept: below the folder of `archive.cache_folder`."""
    return cache_folder() / "choices"


def wanted(
    bundle: Bundle, usable: Iterable[Variant], prefer: Prefer, options: EngineOptions, device: Device
) -> dict[str, Any]:
    """All that a choice hangs on: the bundle, the engines' versions, the processor, threads, and what was asked for."""
    variants = list(usable)
    targets = sorted({variant.target for variant in variants})
    gpu = device.gpu() if any("compute_capability" in variant.requires for variant in variants) else None
    return {
        "bundle": bundle.digest,
        "usable": sorted(variant.name for variant in variants),
        "software": {"deploykit": installed("deploykit"), **{target: engine_version(target) for target in targets}},
        "cpu": {
            "architecture": device.cpu.architecture,
            "model": device.cpu.model,
            "features": sorted(device.cpu.features),
        },
        "gpu": None if gpu is None else {key: str(value) for key, value in asdict(gpu).items()},
        "threads": options.threads or usable_cores(),
        "arena": options.arena,
        "prefer": prefer,
    }


def read(wanted: Mapping[str, Any]) -> tuple[tuple[VariantResult, ...], str]:
    """What was found for ``wanted``, empty where nothing is remembered; and why a file that is there is not used."""
    stored, unread = _read(wanted)
    return (stored.results if stored else ()), unread


def provisional(wanted: Mapping[str, Any]) -> str:
    """Why what is remembered for ``wanted`` is to be measured again; empty where it is settled, or nothing is there."""
    stored, _ = _read(wanted)
    return stored.provisional if stored else ""


def _read(wanted: Mapping[str, Any]) -> tuple[Stored | None, str]:
    path = _path(wanted)
    try:
        _check_private(path.parent)
        data = _plain(path)
        stored = from_json(Stored, json.loads(data, parse_constant=_no_constant), "the choice")
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"the remembered choice '{path}' is not used: {error.strerror or error}"
    except BundleError as error:
        return None, f"the remembered choice '{path}' is not used: {error.message}"
    except (ValueError, RecursionError):
        return None, f"the remembered choice '{path}' is not used: it is damaged"
    if stored.schema != SCHEMA or stored.wanted != wanted or not stored.results:
        return None, f"the remembered choice '{path}' is not used: it is damaged"
    return stored, ""


def write(wanted: Mapping[str, Any], results: Sequence[VariantResult], provisional: str = "") -> str:
    """Remember ``results``, until they are measured again where they are ``provisional``; empty, or a sentence that
    says why that was not possible.
    """
    path = _path(wanted)
    content: dict[str, Any] = {"schema": SCHEMA, "wanted": dict(wanted), "results": [asdict(r) for r in results]}
    text = json.dumps(content | ({"provisional": provisional} if provisional else {}), indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_private(path.parent)
        _replace(path, text.encode())
        _prune(path)
    except OSError as error:
        return f"the choice cannot be remembered in '{path.parent}': {error.strerror or error}"
    return ""


def _path(wanted: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(wanted), sort_keys=True).encode()).hexdigest()
    return folder() / f"{digest[:40]}.json"


def _check_private(place: Path) -> None:
    """`OSError` unless the folder is this user's alone to write."""
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise OSError("others may write to the folder, or it is another's")


def _plain(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise OSError("it is no plain file of this user")
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise OSError("it is too large")
    return data


def _replace(path: Path, data: bytes) -> None:
    descriptor, work = tempfile.mkstemp(prefix=".", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(work).replace(path)
    except BaseException:
        Path(work).unlink(missing_ok=True)
        raise


def _prune(kept: Path) -> None:
    """When there are too many files, all but ``kept`` go, and what killed writers left behind with them."""
    present = list(kept.parent.iterdir())
    if len(present) > _MAX_FILES:
        for path in present:
            if path != kept:
                path.unlink(missing_ok=True)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
