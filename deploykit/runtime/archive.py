"""Packed bundles: reading one stored zip, and the cache that it is unpacked into.

Whatever is odd about an archive is a reason to refuse it; nothing is renamed, skipped or repaired.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

from deploykit.runtime.bundle import MAX_MANIFEST_BYTES, Bundle, parse_manifest
from deploykit.runtime.errors import BundleError, MissingError
from deploykit.runtime.manifest import MANIFEST_NAME
from deploykit.runtime.names import check_distinct, check_name

_REBUILD = "pack the bundle again with `deploykit bundle pack`, or fetch the file again"


def cache_folder() -> Path:
    """Where unpacked bundles are kept: DEPLOYKIT_CACHE, else XDG_CACHE_HOME/deploykit, else ~/.cache/deploykit."""
    if own := os.environ.get("DEPLOYKIT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deploykit"


def cached(archive: Path) -> Path:
    """The folder that holds ``archive`` unpacked; made at the first call, under the digest of the whole archive."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_folder() / "bundles" / digest
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            unpack(archive, folder)
        except OSError as error:
            raise MissingError(
                f"'{archive}' cannot be unpacked into '{folder.parent}' ({error.strerror or error})",
                hint="set DEPLOYKIT_CACHE to a folder with enough space, or unpack it with `deploykit bundle unpack`",
            ) from error
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack ``archive`` as the new folder ``folder``, checked in full; what is refused leaves nothing behind.

    Another process that does the same at the same time is no error: one of the two results stays. An `OSError` is
    left to the caller, who knows what the folder was for.
    """
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _extract(archive, work)
        Bundle.open(work).verify()
        work.chmod(0o755)
        try:
            work.replace(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = _checked_entries(packed, archive)
            for name, info in entries.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(info) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise BundleError(f"'{archive}' is no intact packed bundle: {error}", hint=_REBUILD) from error


def _checked_entries(packed: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries by name, once each of them, and all of them together, agree with the manifest inside."""
    infos = packed.infolist()
    check_distinct([info.filename for info in infos])
    entries = {info.filename: info for info in infos}
    if sum(info.file_size for info in infos) > archive.stat().st_size:
        raise BundleError(f"'{archive}' holds entries that overlap", hint=_REBUILD)
    for info in infos:
        check_name(info.orig_filename)
        if reason := _fault(info):
            raise BundleError(f"'{archive}' is refused: '{info.filename}' {reason}", hint=_REBUILD)
    manifest_info = entries.get(MANIFEST_NAME)
    if manifest_info is None or manifest_info.file_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"'{archive}' has no {MANIFEST_NAME}, or one that is too large", hint=_REBUILD)
    listed = parse_manifest(packed.read(manifest_info)).files
    for name, info in entries.items():
        if name != MANIFEST_NAME and (name not in listed or listed[name].size != info.file_size):
            raise BundleError(
                f"'{archive}' is refused: '{name}' is not listed in the manifest, or with another size", hint=_REBUILD
            )
    if missing := sorted(listed.keys() - entries.keys()):
        raise BundleError(f"'{archive}' is refused: '{missing[0]}' is missing", hint=_REBUILD)
    return entries


def _fault(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if info.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        return "is no plain file"
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        return "is compressed"
    if info.flag_bits & 0x1:
        return "is encrypted"
    return "has two names" if info.filename != info.orig_filename else ""
