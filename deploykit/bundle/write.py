"""Writing a bundle folder: all of it beside the output, then one exchange; a killed run leaves the old or the new."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.bundle import model_card, sbom
from deploykit.errors import BundleError, DiskError, RecipeError
from deploykit.runtime.bundle import PORTABLE_PATH, Bundle, file_entry
from deploykit.runtime.manifest import (
    MANIFEST_NAME,
    SCHEMA,
    SIGNATURE_NAME,
    Card,
    FileEntry,
    Manifest,
    Modality,
    SelfTest,
    Variant,
    to_json,
)
from deploykit.runtime.names import check_distinct, check_name

INPUTS_TEXT, INPUTS_ARRAYS, REFERENCE = "selftest/inputs.json", "selftest/inputs.npz", "selftest/reference.npy"

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class Contents:
    """What a bundle is made of.

    ``portable`` is the fp32 ONNX, None where it is left out on demand. ``variants`` pairs each variant with its files
    by their name in the bundle; none for a variant whose path is ``models/fp32.onnx``. ``files`` are the others by
    name: preprocessing, the self-test's inputs and reference that ``selftest`` names, LICENSE. ``refused`` holds
    ``{"variant": …, "reason": …}``, ``candidates`` a row for each variant that was measured.
    """

    card: Card
    portable: Path | None
    variants: Sequence[tuple[Variant, Mapping[str, Path]]]
    files: Mapping[str, Path]
    selftest: SelfTest
    default: str = ""
    refused: Sequence[Mapping[str, Any]] = ()
    candidates: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_bundle(output: Path, contents: Contents, check: Callable[[Path], None] = lambda folder: None) -> Bundle:
    """Write the bundle at ``output`` and return it, opened and verified. The same contents give the same bytes.

    ``check`` is called with the finished folder before it takes its place; when it raises, nothing has changed.

    A bundle that is there already is replaced at the very end. `RecipeError` when something else is there,
    `BundleError` when the contents do not make a bundle, `DiskError` when it cannot be written.
    """
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            _fill(work, contents)
            Bundle.open(work, output).verify()
            check(work)
            work.chmod(0o755)
            put_in_place(work, output)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DiskError(
            f"the bundle cannot be written at '{output}': {error.strerror or error}",
            hint="free some space, or give another output; what was there before is unchanged",
        ) from error
    return Bundle.open(output)


def write_selftest(folder: Path, modality: Modality, inputs: Any, reference: np.ndarray) -> dict[str, Path]:
    """Write the self-test's two files below ``folder``; returns them by their name in the bundle.

    ``inputs``: a list of texts, of images or waveforms as arrays, or a dict of ready tensors with a batch axis.
    """
    (folder / "selftest").mkdir(parents=True, exist_ok=True)
    name = INPUTS_TEXT if modality == "text" else INPUTS_ARRAYS
    if modality == "text":
        (folder / name).write_text(json.dumps(list(inputs), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    elif isinstance(inputs, Mapping):
        np.savez(folder / name, allow_pickle=False, **inputs)
    else:
        arrays = {f"{index:04}": np.asarray(array) for index, array in enumerate(inputs)}
        np.savez(folder / name, allow_pickle=False, **arrays)
    np.save(folder / REFERENCE, np.asarray(reference, np.float32), allow_pickle=False)
    return {name: folder / name, REFERENCE: folder / REFERENCE}


def check_output(output: Path) -> None:
    """`RecipeError` when ``output`` holds something that is no bundle: it would be lost."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise RecipeError(f"'{output}' is in the way: it is no folder", hint="give another output, or remove it")
    if output.is_dir() and any(output.iterdir()) and not _is_bundle(output):
        raise RecipeError(
            f"'{output}' exists and is no bundle, so it is not replaced", hint="give another output, or remove it"
        )


def put_in_place(work: Path, output: Path) -> None:
    """Make the folder ``work`` be ``output``; what was there ends up at ``work``, for the caller to delete."""
    try:
        work.replace(output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(work, output):
            # Without an exchange in the kernel there is a moment with neither; the old one then stands beside it.
            aside = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
            output.replace(aside)
            work.replace(output)
            aside.replace(work)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step; False where the system (not Linux, some network disks) cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def _is_bundle(folder: Path) -> bool:
    try:
        data = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and str(data.get("schema", "")).startswith("deploykit.bundle/")


def _fill(folder: Path, contents: Contents) -> None:
    """Copy, deduplicate, describe; the manifest, which lists the digests of all, comes last."""
    listed: dict[str, FileEntry] = {}
    places: dict[tuple[str, ...], str] = {}
    if contents.portable is not None:
        listed[PORTABLE_PATH] = _copy(contents.portable, folder / PORTABLE_PATH)
        places[(listed[PORTABLE_PATH].sha256,)] = PORTABLE_PATH
    variants: list[Variant] = []
    for variant, files in contents.variants:
        variants.append(_add_variant(folder, variant, files, listed, places))
    for name, path in sorted(contents.files.items()):
        _add(folder, name, path, listed)
    manifest = Manifest(
        schema=SCHEMA,
        card=contents.card,
        variants=tuple(variants),
        selftest=contents.selftest,
        files={},
        default=contents.default,
        refused=tuple(dict(entry) for entry in contents.refused),
        candidates=tuple(dict(entry) for entry in contents.candidates),
        provenance=dict(contents.provenance),
        portable=contents.portable is not None,
    )
    describe(folder, manifest, listed)


def describe(folder: Path, manifest: Manifest, listed: Mapping[str, FileEntry]) -> None:
    """Write the model card, the SBOM and the manifest of the files that are ``listed``, which holds neither of the
    first two.
    """
    entries = dict(listed)
    for name, render in ((model_card.NAME, model_card.render), (sbom.NAME, sbom.render)):
        (folder / name).write_text(render(replace(manifest, files=dict(entries))), encoding="utf-8")
        entries[name] = file_entry(folder / name)
    data = to_json(replace(manifest, files=dict(sorted(entries.items()))))
    if data["portable"]:  # as it always was: a runtime from before the key reads such a manifest
        del data["portable"]
    (folder / MANIFEST_NAME).write_text(
        json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )


def _add_variant(
    folder: Path,
    variant: Variant,
    files: Mapping[str, Path],
    listed: dict[str, FileEntry],
    places: dict[tuple[str, ...], str],
) -> Variant:
    """Copy a variant's files, unless the very same files are there already: then its path points to those.

    ``places`` maps the digests of an artefact's files, the one to load first, to the path under which they are.
    """
    if not files:
        if variant.path not in listed:
            raise BundleError(f"variant '{variant.name}' has no files", hint=f"give them, or the path {PORTABLE_PATH}")
        return variant
    if variant.path not in files:
        raise BundleError(f"variant '{variant.name}' loads '{variant.path}', which is none of its files", hint="add it")
    others = sorted(set(files) - {variant.path})
    key = tuple(file_entry(files[name]).sha256 for name in (variant.path, *others))
    if key in places:
        return replace(variant, path=places[key])
    for name in (variant.path, *others):
        _add(folder, name, files[name], listed)
    places[key] = variant.path
    return variant


def _add(folder: Path, name: str, path: Path, listed: dict[str, FileEntry]) -> None:
    check_name(name)
    check_distinct([*listed, MANIFEST_NAME, SIGNATURE_NAME, model_card.NAME, sbom.NAME, name])
    listed[name] = _copy(path, folder / name)


def _copy(path: Path, target: Path) -> FileEntry:
    """Copy the content alone; owner, times and links of the source are not the bundle's."""
    if not path.is_file():
        raise BundleError(f"'{path}', which is to become '{target.name}' of the bundle, is no file", hint="check it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return file_entry(target)
