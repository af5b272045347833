"""What a step read beside the artefacts of its parents, and whether that is still the same.

A source is more than the files that somebody listed: external data of any name, the shards that an index names, the
modules behind a Python factory and whatever those open. So the step's own process is watched while it reads
(`deploykit.pipeline.observe`), and the artefact keeps a `Reads`: the content of each file that was read, each place
that was looked into and empty, the names in each folder that was listed, the versions of packages that brought code.
An artefact answers for a step only while all of these hold; what was never read may change at will.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploykit.pipeline.step import package_version

Digest = Callable[[Path], str]

#: Reports and bundles are written beside a source as often as not, and nothing is ever read from them.
_OWN_OUTPUTS = (".report.html", ".report.md", ".report.json", ".bundle", ".engines", ".dkb")
# Two writes within one tick of the file system's clock leave the same times: what is younger is read again.
_SETTLED_NS = 2 * 10**9
_MOST_REMEMBERED = 20_000


@dataclass(frozen=True)
class Reads:
    """``files`` maps absolute paths to (size, sha256); an empty digest stands for a file that changed while it was
    read, and equals nothing. ``absent`` was looked for and not there, ``folders`` maps to the names that were listed.
    """

    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reads:
        """Read what `to_json` wrote; raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            {str(name): (int(size), str(digest)) for name, (size, digest) in data["files"].items()},
            tuple(map(str, data["absent"])),
            {str(name): tuple(map(str, names)) for name, names in data["folders"].items()},
            {str(name): str(version) for name, version in data["packages"].items()},
        )

    @property
    def digest(self) -> str:
        """A name for exactly these reads."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def changed(self, digest: Digest) -> str:
        """What is not as it was read, as a short phrase; empty where everything is. ``digest`` hashes a file."""
        for name, version in self.packages.items():
            if package_version(name) != version:
                return f"{name} {version} is {package_version(name) or 'gone'}"
        for place in self.absent:
            if os.path.lexists(place):
                return f"{place} is new"
        for place, names in self.folders.items():
            if listed(Path(place), names) != names:
                return f"{place} holds other files"
        for place, (size, want) in self.files.items():
            if not _is_as_read(Path(place), size, want, digest):
                return f"{place} changed"
        return ""


def listed(folder: Path, like: Iterable[str] | None = None) -> tuple[str, ...]:
    """The names in a folder without what deploykit itself writes, sorted; empty where it cannot be listed.

    ``like`` is an earlier listing: one that was narrowed to the names that decide is narrowed again.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return ()
    kept = [name for name in names if not name.endswith(_OWN_OUTPUTS) and name != "__pycache__"]
    if like is not None and (NARROWED in like):
        return narrowed(kept)
    return tuple(kept)


#: Heads a listing of which only licences count.
NARROWED = "?licences"
LICENCES = ("LICENSE", "LICENCE", "COPYING")


def narrowed(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that a look through a source's own folder is after; all else in it is looked for by name."""
    return (NARROWED, *(name for name in names if Path(name).stem.upper() in LICENCES))


def _is_as_read(path: Path, size: int, want: str, digest: Digest) -> bool:
    try:
        return bool(want) and path.stat().st_size == size and digest(path) == want
    except OSError:
        return False


def sha256(path: Path) -> str:
    """The content's digest (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """Digests of files, remembered in ``place`` by inode, size and times, so that gigabytes are read once.

    The time of a file's last change cannot be set back. Whatever is wrong with the file of digests costs time alone.
    """

    def __init__(self, place: Path) -> None:
        self._place, self._lock = place, threading.Lock()
        self._known: dict[str, str] | None = None

    def of(self, path: Path) -> str:
        """The content's digest; `OSError` where the file cannot be read."""
        state = state_of(path)
        name = ":".join(map(str, state))
        with self._lock:
            if self._known is None:
                self._known = self._read()
            if (known := self._known.get(name)) is not None:
                return known
        found = sha256(path)
        if state_of(path) == state and time.time_ns() - max(state[3:]) > _SETTLED_NS:
            with self._lock:
                self._known[name] = found
                self._write(name, found)
        return found

    def _read(self) -> dict[str, str]:
        try:
            return dict(line.split() for line in self._place.read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            return {}

    def _write(self, name: str, found: str) -> None:
        """One line more; a file that has grown too long begins anew."""
        if self._known is not None and len(self._known) > _MOST_REMEMBERED:
            self._place.unlink(missing_ok=True)
            self._known.clear()
        try:
            with self._place.open("a", encoding="ascii") as file:
                file.write(f"{name} {found}\n")
        except OSError:
            return  # a store that cannot be written says so where something must be


def state_of(path: Path | str) -> tuple[int, int, int, int, int]:
    """Device, inode, size and the times (ns) of the content's and the entry's last change; `OSError` without one."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
