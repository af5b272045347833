"""One file of a bundle folder, and back: ``NAME.dkb``, a zip whose entries are stored, not compressed."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from deploykit.bundle.write import check_output, put_in_place
from deploykit.errors import DiskError, RecipeError
from deploykit.runtime import archive
from deploykit.runtime.bundle import PACKED_SUFFIX, Bundle
from deploykit.runtime.manifest import MANIFEST_NAME, SIGNATURE_NAME

_EPOCH = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16


def pack(bundle: Path, output: Path) -> Path:
    """Write the verified bundle folder ``bundle`` as the file ``output``; the same bundle gives the same bytes.

    A packed bundle that is there already is replaced at the end. `BundleError` when ``bundle`` is refused,
    `RecipeError` when ``output`` is no ``.dkb`` name or is a folder, `DiskError` when it cannot be written.
    """
    if output.suffix != PACKED_SUFFIX or output.is_dir():
        raise RecipeError(f"'{output}' cannot be a packed bundle", hint=f"give a name that ends in {PACKED_SUFFIX}")
    opened = Bundle.open(bundle)
    opened.verify()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            work = Path(folder) / output.name
            with zipfile.ZipFile(work, "w", zipfile.ZIP_STORED) as packed:
                # The manifest first: a reader of a stream knows what is to come.
                signed = (SIGNATURE_NAME,) if (opened.root / SIGNATURE_NAME).is_file() else ()
                for name in (MANIFEST_NAME, *signed, *sorted(opened.manifest.files)):
                    _add(packed, name, opened.root / name)
            work.replace(output)
    except OSError as error:
        raise _disk_error(output, error) from error
    return output


def unpack(bundle: Path, output: Path) -> Path:
    """Unpack the file ``bundle`` as the folder ``output``, checked in full before it is put in place.

    A bundle folder that is there already is replaced. `BundleError` when the archive is refused, `RecipeError` when
    something else is in the way, `DiskError` when it cannot be written.
    """
    if not bundle.is_file():
        raise RecipeError(f"there is no packed bundle at '{bundle}'", hint=f"give a {PACKED_SUFFIX} file")
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            archive.unpack(bundle, folder / "bundle")
            put_in_place(folder / "bundle", output)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise _disk_error(output, error) from error
    return output


def _add(packed: zipfile.ZipFile, name: str, path: Path) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = _PLAIN_FILE
    info.create_system = 3
    info.file_size = path.stat().st_size
    with path.open("rb") as source, packed.open(info, "w") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _disk_error(output: Path, error: OSError) -> DiskError:
    return DiskError(
        f"'{output}' cannot be written: {error.strerror or error}",
        hint="free some space, or give another output; what was there before is unchanged",
    )
