"""Watches a process while it reads: what it opens, looks for and lists, for `deploykit.pipeline.reads`.

Python tells of every file that it opens and every folder that it lists (`sys.addaudithook`). It does not tell of a look
whether a file is there, and native readers tell of nothing: ``os.stat`` and ``safetensors.safe_open`` are wrapped while
the process is watched, and what an ONNX graph keeps in other files is asked of the graph. What lies in the Python
environment or belongs to the system is left out (the step's key has the versions), but for weights, and for whatever
lies in a source's own folder; so is what the process itself has written.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from deploykit.pipeline.reads import Reads, listed, narrowed, sha256
from deploykit.pipeline.step import package_version

_State = tuple[int, int, int, int, int]
_WEIGHTS = (
    *(".safetensors", ".bin", ".onnx", ".data", ".xml", ".pt", ".pth", ".pt2", ".ckpt", ".npz", ".npy", ".h5", ".hdf5"),
    *(".model", ".gguf", ".msgpack", ".tflite"),
)
_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/bin", "/sbin", "/run")
_WRITES: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# They list every folder of the import path, whatever is looked for.
_IMPORTING = ("_frozen_importlib_external", "importlib._bootstrap_external", "importlib.metadata")
_stat = os.stat
_current: list[Observer] = []


class Observer:
    """What was read since it was made.

    ``roots`` are the folders of the source or of the data, and ``own`` those that belong to the step. With ``by_name``
    what lies in the roots is looked for by its name, so that a listing of them is of no account but for licences.
    """

    def __init__(self, roots: Sequence[Path], own: Sequence[Path] = (), *, by_name: bool = True) -> None:
        self._roots, self._by_name = [str(path.absolute()) for path in roots], by_name
        self._external: set[str] = set()
        self._own = [str(path.absolute()) for path in own]
        self._seen: dict[str, _State | None] = {}
        self._folders: dict[str, None] = {}
        self._written: set[str] = set()
        self._environment = _environment()
        self._began_ns = time.time_ns()
        self._connected = False

    def take(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit event."""
        if event == "open":
            path, mode, flags = args
            writes = bool((flags or 0) & _WRITES) or any(letter in (mode or "") for letter in "wax")
            self._opened(path, writes)
        elif event in ("os.listdir", "os.scandir"):
            if sys._getframe(2).f_globals.get("__name__") not in _IMPORTING:
                self._folders[_text(args[0] if args[0] is not None else ".")] = None
        elif event == "os.rename":
            self._opened(args[1], True)
        elif event in ("tempfile.mkdtemp", "tempfile.mkstemp"):
            self._own.append(_text(args[0]))
        elif event == "socket.connect" and isinstance(args[1], tuple):
            self._connected = True

    def looked(self, path: Any) -> None:
        """Somebody asked whether ``path`` is there."""
        name = _text(path)
        if name and (_state(name) is None or _within(name, self._roots) or name.endswith(_WEIGHTS)):
            self.opened(name)

    def opened(self, path: Any) -> None:
        """``path`` is read."""
        self._opened(path, False)

    def _opened(self, path: Any, writes: bool) -> None:
        name = _text(path)
        if not name or name in self._written:
            return
        if writes:
            if self._seen.get(name) is None:  # else it was read before: its content was an input
                self._written.add(name)
        elif name not in self._seen:
            self._seen[name] = _state(name)

    def reads(self) -> Reads | None:
        """All of it; None where it came over the network too, so that no file tells whether it is the same."""
        if self._connected and not self._roots:
            return None
        code = self._code()
        self._external = set(self._named_by_graphs())
        for name in [*code, *self._beside(code), *self._external]:
            self._seen.setdefault(name, _state(name))
        counted = {name: first for name, first in sorted(self._seen.items()) if self._counts(name)}
        files = {name: self._content(name, first) for name, first in counted.items() if first is not None}
        absent = [name for name, first in counted.items() if first is None and _state(name) is None]
        folders = {name: self._listing(name) for name in sorted(self._folders) if self._counts(name)}
        return Reads(
            {name: content for name, content in files.items() if content is not None},
            tuple(absent),
            folders,
            _versions(self._environment) if code else {},
        )

    def _counts(self, name: str) -> bool:
        if name in self._written or _within(name, self._own) or "__pycache__" in name:
            return False
        return name in self._external or not self._is_environment(name) or name.endswith(_WEIGHTS)

    def _is_environment(self, name: str) -> bool:
        """Whether it is the interpreter's or the system's; a root inside those is not, nor are they in a root."""
        return _depth(name, (*self._environment, *_SYSTEM)) > _depth(name, self._roots)

    def _content(self, name: str, first: _State) -> tuple[int, str] | None:
        """Size and digest; of no use where it is no file, or was made while the process ran."""
        if not Path(name).is_file():
            return None
        if _state(name) != first:
            return first[2], ""
        return first[2], sha256(Path(name))

    def _listing(self, name: str) -> tuple[str, ...]:
        names = listed(Path(name))
        return narrowed(names) if self._by_name and name in self._roots else names

    def _code(self) -> list[str]:
        """The files of the modules that are somebody's own; one that was edited since it began counts as changed."""
        found = []
        for module in list(sys.modules.values()):
            place = getattr(module, "__file__", None)
            name = _text(place) if isinstance(place, str) and place.startswith(os.sep) else ""
            if not name or self._is_environment(name) or _within(name, self._own) or name in self._written:
                continue
            state = _state(name)
            if state is not None:
                self._seen.setdefault(name, state if state[4] < self._began_ns else (0, 0, 0, 0, 0))
                found.append(name)
        return found

    def _beside(self, code: Iterable[str]) -> list[str]:
        """Weights beside somebody's own code: native readers tell of nothing, and whoever saves them keeps them there.

        Only of code that belongs to no source folder, whose files are looked for one by one.
        """
        folders = {Path(name).parent for name in code if not self._roots}
        paths = (folder / name for folder in sorted(folders) for name in listed(folder))
        return [str(path) for path in paths if path.name.endswith(_WEIGHTS) and path.is_file()]

    def _named_by_graphs(self) -> list[str]:
        """The files in which the ONNX graphs that were read keep their weights."""
        graphs = [name for name in self._seen if name.endswith(".onnx") and self._counts(name)]
        if not graphs or "onnx" not in sys.modules:
            return []
        from deploykit.graph.weights import external_files

        found: list[str] = []
        for name in graphs:
            with suppress(Exception):  # whatever it is, its own bytes count
                found += [str(path) for path in external_files(Path(name))]
        return found


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Watch this process until the end of the block. One block at a time: it is the process that is watched."""
    _install()
    os.stat = _observed_stat
    _current.append(observer)
    try:
        with _told_by_safetensors():
            yield
    finally:
        _current.clear()
        os.stat = _stat


def _observed_stat(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
    if dir_fd is None and follow_symlinks:
        for observer in _current:
            observer.looked(path)
    return _stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)


@functools.cache
def _install() -> None:
    """Once in a process: a hook cannot be taken away."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        for observer in _current:
            with suppress(Exception):  # an error here would fail what is watched
                observer.take(event, args)

    sys.addaudithook(hook)


@contextmanager
def _told_by_safetensors() -> Iterator[None]:
    """Tell of the files that safetensors maps natively, for whoever has imported its function or is about to."""
    try:
        import safetensors
    except ImportError:
        yield
        return
    real: Callable[..., Any] = safetensors.safe_open

    def safe_open(filename: Any, *args: Any, **settings: Any) -> Any:
        for observer in _current:
            observer.opened(filename)
        return real(filename, *args, **settings)

    _replace(real, safe_open)
    try:
        yield
    finally:
        _replace(safe_open, real)


def _replace(old: Callable[..., Any], new: Callable[..., Any]) -> None:
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        if names.get("safe_open") is old:
            names["safe_open"] = new


def _environment() -> list[str]:
    """Folders of the interpreter and of installed packages, and deploykit itself, whose code the key has."""
    lib = [Path(prefix, "lib") for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix}]
    paths = [Path(path) for path in sys.path]
    packages = [path for path in paths if path.name in ("site-packages", "dist-packages") or path.suffix == ".zip"]
    places = [*lib, *packages, Path(__file__).parents[1]]
    return list({str(way) for place in places for way in (place.absolute(), place.resolve())})


def _versions(environment: Sequence[str]) -> dict[str, str]:
    """The installed packages of which something was imported; ones without metadata are left out."""
    from importlib.metadata import packages_distributions

    brought = packages_distributions()
    tops = {name.partition(".")[0] for name in list(sys.modules)}
    names = {distribution for top in tops for distribution in brought.get(top, ())} - {"deploykit"}
    return {name: package_version(name) for name in sorted(names)}


def _within(name: str, folders: Iterable[str]) -> bool:
    return _depth(name, folders) >= 0


def _depth(name: str, folders: Iterable[str]) -> int:
    """The length of the innermost of ``folders`` that ``name`` is or lies in; -1 where it is in none."""
    holding = (len(f) for f in folders if name == f or name.startswith(f.rstrip(os.sep) + os.sep))
    return max(holding, default=-1)


def _text(path: Any) -> str:
    """The absolute path; empty for a descriptor."""
    if isinstance(path, int):
        return ""
    return os.path.abspath(os.fsdecode(path)) if path else ""  # noqa: PTH100 - links are followed when it is read


def _state(name: str) -> _State | None:
    try:
        found = _stat(name)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
