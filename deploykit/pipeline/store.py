"""The content-addressed store: one folder per artefact, named by the key of the step that made it.

::

    ROOT/artifacts/<key>/        the files of one artefact and artifact.json
    ROOT/artifacts/<key>-<reads> the same of a step that reads more than artefacts, for what it read
    ROOT/digests.txt             digests of files, so that gigabytes are read once
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
from deploykit.pipeline.reads import Digests, Reads, sha256

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


@dataclass(frozen=True)
class Found:
    """An artefact, or None; ``why`` says why one that is there is not taken."""

    artifact: Artifact | None
    why: str


class Store:
    """Finds and writes artefacts under ``root``; safe for several processes at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).absolute()
        self._digests = Digests(self.root / "digests.txt")

    def find(self, key: str) -> Artifact | None:
        """The artefact of that key when it is there, whole, and what its step read is as it was."""
        return self.look(key).artifact

    def look(self, key: str) -> Found:
        """As `find`; where there is an artefact that cannot be taken, with the reason."""
        place, why = self.root / "artifacts", ""
        for folder in (place / key, *sorted(place.glob(f"{key}-*"))):
            found = self._take(folder)
            if found.artifact is not None:
                return found
            why = why or found.why
        return Found(None, why)

    def _take(self, folder: Path) -> Found:
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            damaged = [name for name, entry in record["files"].items() if not self._is_whole(folder / name, *entry)]
            changed = Reads.from_json(record["reads"]).changed(self._digests.of) if record["reads"] else ""
            artifact = Artifact(record["kind"], folder, record["digest"], record["metadata"], tuple(record["parents"]))
        except FileNotFoundError:
            return Found(None, "")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Found(None, "the record of the stored result is damaged")
        if damaged:
            return Found(None, f"the stored result is damaged: {damaged[0]}")
        return Found(None, changed) if changed else Found(artifact, "")

    def _is_whole(self, path: Path, size: int, digest: str) -> bool:
        try:
            return path.stat().st_size == size and self._digests.of(path) == digest
        except OSError:
            return False

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
        self,
        key: str,
        kind: str,
        work: Path,
        metadata: Mapping[str, Any],
        parents: tuple[str, ...],
        reads: Reads | None = None,
    ) -> Artifact:
        """Make the finished folder ``work`` the artefact of ``key``, while what its step read is as in ``reads``."""
        digests = {name: sha256(work / name) for name in _files(work)}
        facts = {name: value for name, value in metadata.items() if name != "run"}  # how long it took is no content
        digest = hashlib.sha256(json.dumps([digests, facts], sort_keys=True).encode()).hexdigest()
        entries = {name: ((work / name).stat().st_size, found) for name, found in digests.items()}
        folder = self._folder("artifacts") / (key if reads is None else f"{key}-{reads.digest[:12]}")
        artifact = Artifact(kind, folder, digest, metadata, parents)
        kept = None if reads is None else reads.to_json()
        record = {**asdict(artifact), "path": folder.name, "files": entries, "reads": kept}
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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
