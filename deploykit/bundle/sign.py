"""Signing a bundle: ``manifest.sig`` beside the manifest. Checking is `deploykit.runtime.trust.signature`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bundle.pack import pack, unpack
from deploykit.errors import DiskError, RecipeError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import SIGNATURE_NAME
from deploykit.runtime.trust import signature
from deploykit.runtime.trust.signature import Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_SUFFIX = ".pub"


def sign(bundle: Path, key: Path) -> Signature:
    """Verify ``bundle``, a folder or a packed file, and sign it with the private key in the PEM file ``key``.

    A signature that is there is replaced, and so is a packed file, in one rename and otherwise with the same bytes.
    `BundleError` when the bundle is refused, `RecipeError` for a file that is no private Ed25519 key, `MissingError`
    without the package cryptography, `DiskError` when the signature cannot be written.
    """
    private = private_key(key)
    if not bundle.is_file():
        return _sign_folder(bundle, private)
    place = bundle.absolute().parent
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{bundle.name}.", dir=place))
    except OSError as error:
        raise DiskError(f"'{place}' cannot be written: {error.strerror}", hint="sign a copy elsewhere") from error
    try:
        folder = unpack(bundle, work / "unpacked.bundle")
        made = _sign_folder(folder, private)
        pack(folder, bundle)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return made


def _sign_folder(bundle: Path, private: Ed25519PrivateKey) -> Signature:
    opened = Bundle.open(bundle)
    opened.verify()
    manifest = opened.manifest_bytes()
    made = Signature(
        signature.SCHEMA,
        signature.ALGORITHM,
        private.public_key().public_bytes_raw().hex(),
        private.sign(manifest).hex(),
    )
    # Worked on outside the bundle: what a killed process leaves behind there would be one file too many.
    data = (json.dumps(asdict(made), indent=1) + "\n").encode()
    _write(bundle / SIGNATURE_NAME, data, 0o644, bundle.absolute().parent)
    return made


def new_key(path: Path) -> Path:
    """Make a private key at ``path``, readable by its owner alone, and the public one beside it, which is returned.

    `RecipeError` when one of the two files is there already.
    """
    try:
        from cryptography.hazmat.primitives import serialization as pem
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        raise signature.missing() from error
    public = path.with_name(path.name + PUBLIC_SUFFIX)
    for file in (path, public):
        if file.exists():
            raise RecipeError(f"'{file}' is there already", hint="give another name; a key is never written over")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    _write(path, secret, 0o600, path.absolute().parent)
    shown = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    _write(public, shown, 0o644, path.absolute().parent)
    return public


def private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in the PEM file ``path``; `RecipeError` when it holds none for Ed25519, or an encrypted one."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError as error:
        raise signature.missing() from error
    hint = "make one with --new-key, or `openssl genpkey -algorithm ed25519 -out key.pem`"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise RecipeError(f"the key '{path}' cannot be read: {error.strerror}", hint=hint) from error
    except TypeError as error:
        raise RecipeError(
            f"the key '{path}' is encrypted", hint="decrypt it into memory: --key <(openssl pkey -in key.pem)"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RecipeError(f"'{path}' holds no private Ed25519 key in PEM", hint=hint) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RecipeError(f"'{path}' holds a private key of another kind than Ed25519", hint=hint)
    return key


def _write(path: Path, data: bytes, mode: int, work_folder: Path) -> None:
    """All of it or nothing, readable by others only once it stands."""
    try:
        work_folder.mkdir(parents=True, exist_ok=True)
        handle, work = tempfile.mkstemp(prefix=f".{path.name}.", dir=work_folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
            Path(work).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(work).unlink()
            raise
    except OSError as error:
        raise DiskError(
            f"'{path}' cannot be written: {error.strerror or error}", hint="free some space, or write elsewhere"
        ) from error
