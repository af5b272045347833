"""Packed bundles: reading one stored zip, and the cache that it is unpacked into.

Whatever is odd about an archive is a reason to refuse it; nothing is renamed, skipped or repaired.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from deploykit.runtime.bundle import MAX_MANIFEST_BYTES, Bundle, parse_manifest
from deploykit.runtime.errors import BundleError, MissingError
from deploykit.runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME
from deploykit.runtime.names import check_distinct, check_name
from deploykit.runtime.trust import signature

MAX_ENTRIES: Final = 10_000
MAX_DIRECTORY_BYTES: Final = 4 << 20

# PKZIP's APPNOTE 4.3.7, 4.3.14 to 4.3.16: the fixed parts of the local header and of the archive's end.
_LOCAL, _LOCAL_SIGNATURE = struct.Struct("<4s5H3I2H"), b"PK\3\4"
_END, _END_SIGNATURE = struct.Struct("<4s4H2IH"), b"PK\5\6"
_LOCATOR, _LOCATOR_SIGNATURE = struct.Struct("<4sIQI"), b"PK\6\7"
_END64, _END64_SIGNATURE = struct.Struct("<4sQ2H2I4Q"), b"PK\6\6"
_ENCRYPTED, _DESCRIPTOR_BEHIND = 0x1, 0x8
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
        Bundle.open(work, archive).verify()
        work.chmod(0o755)
        try:
            work.replace(folder)
        except OSError:
            if not folder.is_dir():
                raise
    except BundleError as error:
        if str(archive) in error.message:
            raise
        raise BundleError(f"'{archive}': {error.message}", hint=error.hint) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        directory_at = _check_directory(archive)
        with zipfile.ZipFile(archive) as packed:
            _check_layout(packed, archive, directory_at)
            entries = _checked_entries(packed, archive)
            for name, info in entries.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(info) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise BundleError(f"'{archive}' is no intact packed bundle: {error}", hint=_REBUILD) from error


def _checked_entries(packed: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries by name, once each of them, and all of them together, agree with the manifest inside."""
    infos = packed.infolist()
    check_distinct([info.filename for info in infos])
    entries = {info.filename: info for info in infos}
    for info in infos:
        check_name(info.orig_filename)
        if reason := _fault(info):
            raise BundleError(f"'{archive}' is refused: '{info.filename}' {reason}", hint=_REBUILD)
    manifest_info = entries.get(MANIFEST_NAME)
    if manifest_info is None or manifest_info.file_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"'{archive}' has no {MANIFEST_NAME}, or one that is too large", hint=_REBUILD)
    listed = parse_manifest(packed.read(manifest_info)).files
    if SIGNATURE_NAME in entries and entries[SIGNATURE_NAME].file_size > signature.MAX_BYTES:
        raise BundleError(f"'{archive}' is refused: its {SIGNATURE_NAME} is too large", hint=_REBUILD)
    for name, info in entries.items():
        if name not in (MANIFEST_NAME, SIGNATURE_NAME) and (name not in listed or listed[name].size != info.file_size):
            raise BundleError(
                f"'{archive}' is refused: '{name}' is not listed in the manifest, or with another size", hint=_REBUILD
            )
    if missing := sorted(listed.keys() - entries.keys()):
        raise BundleError(f"'{archive}' is refused: '{missing[0]}' is missing", hint=_REBUILD)
    return entries


def _check_directory(archive: Path) -> int:
    """Where the archive's directory begins, once it is as small as a bundle's and ends where the file does.

    It comes before the zip reader, which would read a directory of any size into memory.
    """
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - _END.size - _LOCATOR.size - _END64.size))
        tail = file.read()
    if len(tail) < _END.size or tail[-_END.size :][:4] != _END_SIGNATURE or tail[-2:] != b"\0\0":
        raise BundleError(f"'{archive}' is no intact packed bundle: no end, or something behind it", hint=_REBUILD)
    _, _, _, _, count, length, at, _ = _END.unpack(tail[-_END.size :])
    end = size - _END.size
    locator = tail[-_END.size - _LOCATOR.size : -_END.size]
    if locator[:4] == _LOCATOR_SIGNATURE:
        end -= _LOCATOR.size + _END64.size
        if len(tail) < _END.size + _LOCATOR.size + _END64.size or tail[:4] != _END64_SIGNATURE:
            raise BundleError(f"'{archive}' is no intact packed bundle: its end is not whole", hint=_REBUILD)
        *_, count, length, at = _END64.unpack(tail[: _END64.size])
    if count > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        fact = f"it says that it holds {count} files in a directory of {length} bytes"
        raise BundleError(f"'{archive}' is refused: {fact}", hint=_REBUILD)
    if at + length != end:
        raise BundleError(f"'{archive}' is no intact packed bundle: its directory is not where it says", hint=_REBUILD)
    return int(at)


def _check_layout(packed: zipfile.ZipFile, archive: Path, directory_at: int) -> None:
    """`BundleError` unless the entries fill the archive from its first byte to its directory: none overlaps another,
    nothing is hidden between them, and each says the same of itself as the directory does.
    """
    at = 0
    with archive.open("rb") as file:
        for info in sorted(packed.infolist(), key=lambda info: info.header_offset):
            if info.header_offset != at:
                raise BundleError(
                    f"'{archive}' is refused: '{info.filename}' overlaps another entry, or hides bytes before it",
                    hint=_REBUILD,
                )
            file.seek(at)
            head = file.read(_LOCAL.size)
            if len(head) < _LOCAL.size or not head.startswith(_LOCAL_SIGNATURE):
                raise BundleError(f"'{archive}' is no intact packed bundle: an entry has no head", hint=_REBUILD)
            _, _, flags, method, _, _, crc, _, _, name_bytes, extra_bytes = _LOCAL.unpack(head)
            if flags != info.flag_bits or method != info.compress_type or crc != info.CRC:
                raise BundleError(
                    f"'{archive}' is refused: '{info.filename}' says other things of itself than the directory does",
                    hint=_REBUILD,
                )
            at += _LOCAL.size + name_bytes + extra_bytes + info.compress_size
    if at != directory_at:
        raise BundleError(f"'{archive}' is refused: it hides bytes between its entries and its end", hint=_REBUILD)


def _fault(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if info.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        return "is no plain file"
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        return "is compressed"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.flag_bits & _DESCRIPTOR_BEHIND:
        return "has its size behind it"
    return "has two names" if info.filename != info.orig_filename else ""
