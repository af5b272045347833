"""Signatures: Ed25519 (RFC 8032) over the bytes of ``manifest.json``, kept beside it in ``manifest.sig``.

The manifest lists the digest of every other file, so whoever signs it signs the bundle. ``manifest.sig`` is JSON::

    {"schema": "deploykit.signature/1", "algorithm": "ed25519", "key": "<64 hex>", "signature": "<128 hex>"}

What it says of its key is a name, never a proof: a bundle is trusted because the caller brought that key.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploykit.runtime.bundle import read_plain
from deploykit.runtime.errors import BundleError, InputError, MissingError
from deploykit.runtime.install import pip_install
from deploykit.runtime.manifest import SIGNATURE_NAME, from_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SCHEMA: Final = "deploykit.signature/1"
MAX_BYTES: Final = 4096
ALGORITHM: Final = "ed25519"


@dataclass(frozen=True)
class Signature:
    """``manifest.sig``: the public key's 32 bytes and the signature's 64, in hex."""

    schema: str
    algorithm: str
    key: str
    signature: str


def read(root: Path) -> Signature | None:
    """The signature that stands in the bundle folder ``root``, not checked; None without one."""
    try:
        data = read_plain(root / SIGNATURE_NAME, MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(f"cannot be read ({error.strerror or error})") from error
    return parse(data)


def parse(data: bytes) -> Signature:
    """The signature in ``data``; `BundleError` for anything that is none."""
    if len(data) > MAX_BYTES:
        raise _damaged(f"is larger than {MAX_BYTES} bytes")
    try:
        found = from_json(Signature, json.loads(data.decode("utf-8")), SIGNATURE_NAME)
        sizes = (len(bytes.fromhex(found.key)), len(bytes.fromhex(found.signature)))
    except (ValueError, RecursionError) as error:
        raise _damaged(f"is no signature: {error}") from error
    if found.schema != SCHEMA or found.algorithm != ALGORITHM or sizes != (32, 64):
        raise _damaged(f"is no {ALGORITHM} signature of the schema {SCHEMA}")
    return found


def check(root: Path, manifest: bytes, key: str | os.PathLike[str], said: str = "") -> Signature:
    """The signature of the bundle at ``root`` over ``manifest``, once it was made with the private half of ``key``.

    Messages call the bundle ``said``, or ``root`` without it.

    ``key`` is a file with a public key in PEM. `BundleError` when there is no signature, another key's, or a false one;
    `InputError` for a file that is no such key; `MissingError` without the package cryptography.
    """
    wanted = public_key(key)
    name = wanted.public_bytes_raw().hex()
    found = read(root)
    if found is None:
        raise BundleError(
            f"the bundle '{said or root}' is refused: it is not signed, and a signature is required",
            hint="get it from where it is signed, or sign your own with `deploykit bundle sign`",
        )
    if found.key.lower() != name:
        raise BundleError(
            f"the bundle '{said or root}' is refused: it is signed by the key {short(found.key)}, and the key required "
            f"is {short(name)}",
            hint="give the signer's public key if you trust it; never take it from the bundle itself",
        )
    from cryptography.exceptions import InvalidSignature

    try:
        wanted.verify(bytes.fromhex(found.signature), manifest)
    except InvalidSignature:
        raise BundleError(
            f"the bundle '{said or root}' is refused: its signature is not one of its manifest.json",
            hint="the manifest was changed after it was signed: fetch the bundle again from where it came",
        ) from None
    return found


def public_key(path: str | os.PathLike[str]) -> Ed25519PublicKey:
    """The public key in the PEM file ``path``; `InputError` when it holds none for Ed25519."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError as error:
        raise missing() from error
    try:
        key = load_pem_public_key(Path(path).read_bytes())
    except OSError as error:
        raise InputError(
            f"the key '{path}' cannot be read: {error.strerror}", hint="give a public key in PEM"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path)
    return key


def missing() -> MissingError:
    """Without the package nothing can be signed or checked."""
    return MissingError("cryptography is not installed, which signatures need", hint=pip_install("sign"))


def short(key: str) -> str:
    """The first 16 hex digits of a key, as messages name it."""
    return key.lower()[:16]


def _no_key(path: str | os.PathLike[str]) -> InputError:
    return InputError(
        f"'{path}' holds no public Ed25519 key in PEM",
        hint="give the .pub file that `deploykit bundle sign --new-key` wrote, or `openssl pkey -pubout` of the key",
    )


def _damaged(fact: str) -> BundleError:
    return BundleError(
        f"the bundle is refused: '{SIGNATURE_NAME}' {fact}", hint="sign the bundle again, or fetch it again"
    )
