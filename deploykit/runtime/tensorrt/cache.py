"""Engines built on this device, kept for this user: one folder per model, recipe, TensorRT, GPU and driver.

::

    ROOT/<key>/engine.bin        mode 0600, in folders of mode 0700: an engine is executable code
    ROOT/<key>/metadata.json
    ROOT/<key>/layers.json       what the inspector told of it when it was first loaded
    ROOT/<key>/kernels.bin       what TensorRT for RTX compiled when it ran, executable code too
    ROOT/<key>.lock              held by the process that builds; the system lets go of it when that process dies

An engine appears by one rename, so a build that is killed leaves none. Deleting ROOT is always safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.runtime.errors import MissingError
from deploykit.runtime.tensorrt.build import Built, dumps, refusal

_ENGINE, _METADATA, _LAYERS, _KERNELS = "engine.bin", "metadata.json", "layers.json", "kernels.bin"


@dataclass(frozen=True)
class Cached:
    """An engine and its metadata. ``built`` False: it was there. ``stale`` says why older ones were not taken."""

    engine: bytes
    metadata: Mapping[str, Any]
    built: bool
    stale: tuple[str, ...] = ()


def default_root() -> Path:
    """``DEPLOYKIT_ENGINES``, else ``deploykit/engines`` in the user's cache folder."""
    if given := os.environ.get("DEPLOYKIT_ENGINES"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "deploykit" / "engines"


def key_of(wanted: Mapping[str, Any]) -> str:
    """The folder's name. ``wanted`` is what `build.refusal` takes, with the driver and the GPU's name."""
    return hashlib.sha256(json.dumps(dict(wanted), sort_keys=True).encode()).hexdigest()[:40]


def get(root: Path, wanted: Mapping[str, Any], build: Callable[[], Built]) -> Cached:
    """The engine for ``wanted``: from the cache, or built, by one process while the others wait for it.

    Raises `MissingError` where the cache cannot be written or others may write to it, and what ``build`` raises.
    """
    private(root)
    key = key_of(wanted)
    with _lock(root / f"{key}.lock"):
        if (found := _read(root / key, wanted)) is not None:
            return Cached(*found, built=False)
        stale = tuple(_stale(root, wanted))
        built = build()
        _write(root, key, built, wanted)
        return Cached(built.engine, built.metadata, True, stale)


def layers(root: Path, wanted: Mapping[str, Any], inspect: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What is kept of an engine's layers beside it; ``inspect`` is asked, once, where there is nothing yet."""
    folder = root / key_of(wanted)
    try:
        found: list[dict[str, Any]] = json.loads((folder / _LAYERS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = inspect()
        # An engine that another process has replaced meanwhile, or a full disk, is no reason not to run.
        with contextlib.suppress(OSError):
            descriptor, unfinished = tempfile.mkstemp(dir=folder)  # mode 0600
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(found, file, indent=1)
            Path(unfinished).replace(folder / _LAYERS)
    return found


def kernels(root: Path, wanted: Mapping[str, Any]) -> Path:
    """Where the kernels of an engine are kept, beside it."""
    return root / key_of(wanted) / _KERNELS


def private(root: Path) -> None:
    """Make the folder, for this user alone; `MissingError` when it is another's or others may write to it."""
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = root.lstat()
    except OSError as error:
        raise MissingError(
            f"the engines' cache cannot be written: {error.strerror}: {root}",
            hint="set DEPLOYKIT_ENGINES to a folder of your own",
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise MissingError(
            f"others may write to the engines' cache '{root}', and engines are executable code",
            hint=f"chmod 700 {root}, or set DEPLOYKIT_ENGINES to a folder of your own",
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(folder: Path, wanted: Mapping[str, Any]) -> tuple[bytes, Mapping[str, Any]] | None:
    """None where there is no engine, or it is not whole, or it is not the one that is wanted."""
    try:
        metadata = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
        engine = (folder / _ENGINE).read_bytes()
        whole = hashlib.sha256(engine).hexdigest() == metadata["digests"]["engine"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (engine, metadata) if whole and not refusal(metadata, wanted) else None


def _stale(root: Path, wanted: Mapping[str, Any]) -> Iterator[str]:
    """Why each older engine of the same model and flavour does not serve."""
    for path in sorted(root.glob(f"*/{_METADATA}")):
        try:
            metadata = json.loads(path.read_text(encoding="utf-8"))
            same = metadata["digests"]["model"] == wanted["model"] and metadata["flavour"] == wanted["flavour"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if same:
            yield refusal(metadata, wanted) or "its file is damaged, or the driver is another one"


def _write(root: Path, key: str, built: Built, wanted: Mapping[str, Any]) -> None:
    """Complete in a folder of its own, then in place by one rename; what killed builds left behind goes."""
    for left in root.glob(f".{key}.*"):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))  # mode 0700
    try:
        for name, data in ((_ENGINE, built.engine), (_METADATA, dumps(built.metadata).encode())):
            descriptor = os.open(work / name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        shutil.rmtree(root / key, ignore_errors=True)
        work.rename(root / key)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise MissingError(
            f"the engine cannot be kept: {error.strerror}: {root}", hint="free some space, or set DEPLOYKIT_ENGINES"
        ) from error
