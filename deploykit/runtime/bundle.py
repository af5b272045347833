"""A bundle on disk: reading its manifest, and checking every file against it before anything is loaded.

What is refused, always with the file and the reason: a manifest that is too large or does not parse, a name that leaves
the folder or is one file with another on some system, a symbolic link, a file that is missing, altered, of another size
or not listed, a library, an engine or a pickle; with a key, a bundle that this key has not signed. Hard links are
accepted: installers make them (a bundle inside a wheel), and the digest covers their content.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from deploykit.runtime.errors import BundleError
from deploykit.runtime.manifest import MANIFEST_NAME, SCHEMA, SIGNATURE_NAME, FileEntry, Manifest, Variant, from_json
from deploykit.runtime.names import check_distinct, check_name, inside

# A real one has some ten kilobytes. Parsed, the worst JSON of this size takes a hundred megabytes.
MAX_MANIFEST_BYTES = 4 * 2**20
PORTABLE_PATH = "models/fp32.onnx"
PACKED_SUFFIX = ".dkb"

_PORTABLE = Variant(name="", target="onnxruntime", precision="fp32", path=PORTABLE_PATH)
_TARGET = re.compile("[a-z][a-z0-9_-]{0,63}")
_SHA256 = re.compile("[0-9a-f]{64}")
_REBUILD = "build the bundle again, or fetch it again from where it came"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its manifest and ``digest``, the SHA-256 of ``manifest.json``.

    Since the manifest lists the digest of every other file, ``digest`` names the whole content. ``given`` is what the
    user called it, for messages: a packed one lies unpacked in a cache that nobody knows.
    """

    root: Path
    manifest: Manifest
    digest: str
    given: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """The name for messages."""
        return self.given or str(self.root)

    @classmethod
    def open(cls, path: str | os.PathLike[str], given: str | os.PathLike[str] = "") -> Bundle:
        """Read the manifest of a bundle folder, or of a packed ``.dkb``, which is unpacked into the cache once.

        The files themselves are checked by `verify`. `BundleError` when there is no bundle at ``path``; messages name
        ``given``, or ``path`` without it.
        """
        said, root = os.fspath(given or path), Path(path)
        if root.is_file():
            from deploykit.runtime.archive import cached

            root = cached(root)
        if not root.is_dir():
            raise BundleError(f"there is no bundle at '{said}'", hint="give a bundle folder or a packed .dkb file")
        try:
            data = read_plain(root / MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise BundleError(
                f"'{said}' is no bundle: its {MANIFEST_NAME} cannot be read ({error.strerror or error})",
                hint="give the folder that `deploykit export -o` wrote",
            ) from error
        try:
            manifest = parse_manifest(data)
        except BundleError as error:
            raise BundleError(f"'{said}': {error.message}", hint=error.hint) from error
        return cls(root, manifest, hashlib.sha256(data).hexdigest(), said)

    @property
    def portable(self) -> Variant:
        """The portable fp32 model on onnxruntime: the listed variant that uses it, or one made up for it.

        `BundleError` where it was left out.
        """
        if not self.manifest.portable:
            raise BundleError(
                f"the bundle '{self.label}' was slimmed without its portable fp32 model, which is needed here",
                hint="use the bundle that it was made from, or slim that again without --no-portable",
            )
        for variant in self.manifest.variants:
            if replace(variant, name="", proof={}, audit={}, latency={}, drift={}, lowered={}) == _PORTABLE:
                return variant
        return replace(_PORTABLE, name="portable")

    def variant(self, name: str) -> Variant:
        """The variant of that name; ``portable`` exists unless it was left out."""
        if name == "portable" or (self.manifest.portable and name == self.portable.name):
            return self.portable
        return self.manifest.variant(name)

    def is_portable(self, variant: Variant) -> bool:
        """Is it the portable fp32 model, and no other?"""
        return self.manifest.portable and variant == self.portable

    def file(self, name: str) -> Path:
        """The path of the listed file ``name``."""
        if name not in self.manifest.files:
            raise BundleError(f"the bundle '{self.label}' lists no file '{name}'", hint=_REBUILD)
        return inside(self.root, name)

    def manifest_bytes(self) -> bytes:
        """``manifest.json`` as it was opened; `BundleError` when it has changed since."""
        try:
            data = read_plain(self.root / MANIFEST_NAME, MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            self._refuse(MANIFEST_NAME, f"cannot be read ({error.strerror or error})")
        if hashlib.sha256(data).hexdigest() != self.digest:
            self._refuse(MANIFEST_NAME, "changed since it was opened")
        return data

    def verify(self, require_signature: str | os.PathLike[str] | None = None) -> None:
        """Check every file against the manifest: presence, kind, size, SHA-256. Files are streamed.

        ``require_signature`` is a file with a public Ed25519 key in PEM: the manifest must be signed by it.
        `BundleError` names the first file that is wrong and why; for the key see `trust.signature.check`.
        """
        if require_signature is not None:
            from deploykit.runtime.trust import signature

            signature.check(self.root, self.manifest_bytes(), require_signature, self.label)
        files = self.manifest.files
        present = dict(_walk(self.root))
        for name, info in present.items():
            if not stat.S_ISREG(info.st_mode):
                kind = "a symbolic link" if stat.S_ISLNK(info.st_mode) else "no plain file"
                self._refuse(name, f"is {kind}")
            if name not in files and name not in (MANIFEST_NAME, SIGNATURE_NAME):
                self._refuse(name, "is not listed in the manifest")
        for name, entry in files.items():
            if name not in present:
                self._refuse(name, "is missing")
            if present[name].st_size != entry.size:
                self._refuse(name, f"has {present[name].st_size} bytes, the manifest says {entry.size}")
        # Sizes first, over all files: a truncated download is reported without reading gigabytes.
        for name, entry in files.items():
            if file_entry(self.root / name).sha256 != entry.sha256:
                self._refuse(name, "was altered: its SHA-256 is not the one in the manifest")
        self.manifest_bytes()

    def _refuse(self, name: str, reason: str) -> NoReturn:
        raise BundleError(f"the bundle '{self.label}' is refused: '{name}' {reason}", hint=_REBUILD)


def file_entry(path: Path) -> FileEntry:
    """Digest and size of a file, streamed."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(digest, file.tell())


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in ``data``; `BundleError` for anything that is not a complete, consistent one."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes", hint=_REBUILD)
    try:
        text = data.decode("utf-8")
        raw = json.loads(
            text, object_pairs_hook=_distinct_keys, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
        )
        if "\\ud" in text.lower():  # half a surrogate pair is no text: printing it would fail
            json.dumps(raw, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_NAME} is no valid JSON: {error}", hint=_REBUILD) from error
    schema = raw.get("schema") if isinstance(raw, Mapping) else None
    if schema != SCHEMA:
        raise BundleError(
            f"{MANIFEST_NAME} has the schema {schema!r}, this deploykit reads {SCHEMA!r}",
            hint="use the deploykit version that wrote the bundle, or build it again",
        )
    try:
        manifest = from_json(Manifest, raw)
    except RecursionError as error:
        raise BundleError(f"{MANIFEST_NAME} is nested too deeply", hint=_REBUILD) from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """What one key cannot tell: names, and that every file that is spoken of is listed."""
    for name, entry in manifest.files.items():
        check_name(name)
        if entry.size < 0 or not _SHA256.fullmatch(entry.sha256):
            raise BundleError(f"manifest.files['{name}'] has no valid size or SHA-256", hint=_REBUILD)
    check_distinct([MANIFEST_NAME, SIGNATURE_NAME, *manifest.files])
    for said in (manifest.card.name, *(text for v in manifest.variants for text in (v.name, v.target, v.precision))):
        if not said.isprintable():
            raise BundleError(f"{MANIFEST_NAME} has the name {said!r}, which is no plain text", hint=_REBUILD)
    for variant in manifest.variants:
        if not _TARGET.fullmatch(variant.target):
            raise BundleError(f"variant '{variant.name}' has the target {variant.target!r}", hint=_REBUILD)
    for where, name in _mentioned(manifest):
        if name not in manifest.files:
            raise BundleError(f"{where} is '{name}', which the manifest does not list", hint=_REBUILD)
    names = [v.name for v in manifest.variants]
    if len(set(names)) != len(names):
        raise BundleError("two variants have the same name", hint=_REBUILD)
    if manifest.default and manifest.default not in names:
        raise BundleError(f"the default variant '{manifest.default}' is not in the bundle", hint=_REBUILD)


def _mentioned(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if manifest.portable:
        yield "the portable model", PORTABLE_PATH
    for variant in manifest.variants:
        yield f"the path of variant '{variant.name}'", variant.path
        if variant.path.endswith(".xml"):
            yield f"the weights of variant '{variant.name}'", variant.path.removesuffix(".xml") + ".bin"
    yield "selftest.inputs", manifest.selftest.inputs
    yield "selftest.reference", manifest.selftest.reference
    for key, value in manifest.card.preprocess.items():
        if isinstance(value, str) and value.startswith("preprocess/"):
            yield f"preprocess.{key}", value


def _walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below ``root`` that is no folder, by its name in the bundle; links are reported, never followed."""
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                else:
                    yield path.relative_to(root).as_posix(), entry.stat(follow_symlinks=False)


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is larger than any number")
    return number


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:40]}… is larger than any size or count")
    return int(text)


def read_plain(path: Path, most: int) -> bytes:
    """The first ``most`` bytes of a plain file; `OSError` for a link, and for a pipe, on which reading would wait."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        return file.read(most)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
