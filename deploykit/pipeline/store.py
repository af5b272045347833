"""The content-addressed store: one folder per artefact, named by the key of the step that made it.

::

    ROOT/artifacts/<key>/        the files of one artefact and artifact.json
    ROOT/locks/<key>.lock        held while somebody makes it
    ROOT/tmp/                    unfinished work; removed by the next run that finds its owner gone
    ROOT/failed/<step>-<key>/    request and log of a step that failed, to reproduce it

An artefact appears by one rename, so a killed run leaves nothing half-written. Deleting ROOT is always safe.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploykit.errors import BusyError, DiskError

RECORD = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """What a step made: a folder of files, their digest, facts about them, and the digests of what they came from."""

    kind: str
    path: Path
    digest: str
    metadata: Mapping[str, Any]
    parents: tuple[str, ...] = field(default=())


def default_root() -> Path:
    """``DEPLOYKIT_STORE``, else ``deploykit/store`` in the user's cache folder."""
    if given := os.environ.get("DEPLOYKIT_STORE"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "deploykit" / "store"


class Store:
    """Finds and writes artefacts under ``root``; safe for several processes at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).absolute()

    def find(self, key: str) -> Artifact | None:
        """The artefact of that key when it is there and none of its files is missing or of another size."""
        folder = self.root / "artifacts" / key
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if any((folder / name).stat().st_size != size for name, size in record["files"].items()):
                return None
        except (OSError, ValueError, KeyError):
            return None
        return Artifact(record["kind"], folder, record["digest"], record["metadata"], tuple(record["parents"]))

    @contextmanager
    def lock(self, name: str, *, wait: bool, what: str = "") -> Iterator[None]:
        """Hold the lock ``name``. With ``wait`` False a lock held elsewhere is a `BusyError` that says ``what``."""
        from filelock import FileLock, Timeout

        path = self._folder("locks") / f"{name}.lock"
        try:
            with FileLock(path, timeout=-1 if wait else 0):
                yield
        except Timeout as error:
            raise BusyError(
                f"another deploykit run is busy with '{what or name}'", hint=f"wait for it to end (lock: {path})"
            ) from error

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A private empty folder on the store's disk, gone afterwards."""
        self._sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self._folder("tmp")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(
        self, key: str, kind: str, work: Path, metadata: Mapping[str, Any], parents: tuple[str, ...]
    ) -> Artifact:
        """Make the finished folder ``work`` the artefact of ``key``."""
        digests = {name: _sha256(work / name) for name in _files(work)}
        facts = {name: value for name, value in metadata.items() if name != "run"}  # how long it took is no content
        digest = hashlib.sha256(json.dumps([digests, facts], sort_keys=True).encode()).hexdigest()
        sizes = {name: (work / name).stat().st_size for name in digests}
        folder = self._folder("artifacts") / key
        artifact = Artifact(kind, folder, digest, metadata, parents)
        record = {**asdict(artifact), "path": key, "files": sizes}
        (work / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        work.rename(folder)
        return artifact

    def keep_failure(self, name: str, files: Mapping[str, str]) -> Path:
        """Keep the request and log of a failed step, so that it can be reproduced; returns the folder."""
        folder = self._folder("failed") / name
        folder.mkdir(exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        return folder

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DiskError(
                f"the store cannot be written: {error.strerror}: {folder}",
                hint="set DEPLOYKIT_STORE to a folder that you may write to",
            ) from error
        return folder

    def _sweep(self) -> None:
        """Remove the workspaces of runs that were killed: their name begins with a process id that is gone."""
        for folder in self._folder("tmp").iterdir():
            owner = folder.name.partition("-")[0]
            if owner.isdigit() and not _alive(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn 'no space left' and 'read-only' into a `DiskError` that names what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise DiskError(
                f"{what} cannot be written: {error.strerror}" + (f": {error.filename}" if error.filename else ""),
                hint="free some space or choose another folder; what was there before is untouched",
            ) from error
        raise


def _files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
