import json
import os
import stat
import subprocess
import sys

import pytest

from deploykit.bundle import sign as library
from deploykit.bundle.pack import pack, unpack
from deploykit.errors import BundleError, InputError, MissingError, RecipeError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.loading import load
from deploykit.runtime.trust import signature
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")
pytest.importorskip("cryptography")


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    return made.bundle(tmp_path)


@pytest.fixture
def keys(tmp_path):
    """A private key and the public one."""
    return tmp_path / "key.pem", library.new_key(tmp_path / "key.pem")


@pytest.fixture
def others(tmp_path):
    return tmp_path / "other.pem", library.new_key(tmp_path / "other.pem")


def test_a_signed_bundle_is_what_its_key_says(bundle, keys):
    private, public = keys
    made_signature = library.sign(bundle.root, private)
    opened = Bundle.open(bundle.root)
    opened.verify(public)
    opened.verify()
    assert signature.read(bundle.root) == made_signature
    assert opened.digest == bundle.digest


def test_it_is_plain_ed25519_over_the_manifest(bundle, keys):
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    private, public = keys
    library.sign(bundle.root, private)
    data = json.loads((bundle.root / "manifest.sig").read_text())
    key = load_pem_public_key(public.read_bytes())
    assert data["key"] == key.public_bytes_raw().hex()
    key.verify(bytes.fromhex(data["signature"]), (bundle.root / "manifest.json").read_bytes())


def test_a_required_signature_that_is_not_there(bundle, keys):
    with pytest.raises(BundleError, match="it is not signed, and a signature is required"):
        Bundle.open(bundle.root).verify(keys[1])
    with pytest.raises(BundleError, match="it is not signed"):
        load(bundle.root, require_signature=keys[1])


def test_a_signature_by_another_key_names_both(bundle, keys, others):
    theirs = library.sign(bundle.root, others[0])
    ours = signature.public_key(keys[1]).public_bytes_raw().hex()
    with pytest.raises(BundleError, match="the key required is") as caught:
        Bundle.open(bundle.root).verify(keys[1])
    assert theirs.key[:16] in caught.value.message
    assert ours[:16] in caught.value.message


def test_another_key_that_calls_itself_by_the_name_of_ours(bundle, keys, others):
    library.sign(bundle.root, others[0])
    path = bundle.root / "manifest.sig"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "key": signature.public_key(keys[1]).public_bytes_raw().hex()}))
    with pytest.raises(BundleError, match="its signature is not one of its manifest"):
        Bundle.open(bundle.root).verify(keys[1])


def test_a_manifest_changed_after_it_was_signed(bundle, keys):
    library.sign(bundle.root, keys[0])
    path = bundle.root / "manifest.json"
    path.write_text(path.read_text().replace('"tiny"', '"tidy"'))
    with pytest.raises(BundleError, match="its signature is not one of its manifest"):
        Bundle.open(bundle.root).verify(keys[1])


def test_a_file_changed_after_the_bundle_was_signed(bundle, keys):
    library.sign(bundle.root, keys[0])
    (bundle.root / "MODEL_CARD.md").write_text("x")
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md"):
        Bundle.open(bundle.root).verify(keys[1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is no signature"),
        (b"[]", "must be an object"),
        (b'{"schema": "deploykit.signature/1"}', "lacks the key"),
        (b" " * 5000, "is larger than"),
        (b"[" * 4000, "is no signature"),
    ],
)
def test_a_damaged_signature_is_refused(bundle, keys, text, reason):
    (bundle.root / "manifest.sig").write_bytes(text)
    with pytest.raises(BundleError, match=reason):
        Bundle.open(bundle.root).verify(keys[1])


def test_a_signature_that_is_a_link_is_refused(bundle, keys, tmp_path):
    library.sign(bundle.root, keys[0])
    (bundle.root / "manifest.sig").rename(tmp_path / "elsewhere")
    (bundle.root / "manifest.sig").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(bundle.root).verify(keys[1])
    with pytest.raises(BundleError, match="is a symbolic link"):
        Bundle.open(bundle.root).verify()


def test_signing_a_damaged_bundle_is_refused(bundle, keys):
    (bundle.root / "MODEL_CARD.md").write_text("x")
    with pytest.raises(BundleError):
        library.sign(bundle.root, keys[0])
    assert not (bundle.root / "manifest.sig").exists()


def test_the_signature_is_packed_and_unpacked(bundle, keys, tmp_path):
    library.sign(bundle.root, keys[0])
    packed = pack(bundle.root, tmp_path / "a.dkb")
    Bundle.open(packed).verify(keys[1])
    Bundle.open(unpack(packed, tmp_path / "again.bundle")).verify(keys[1])


def test_a_packed_bundle_is_signed_in_place(bundle, keys, tmp_path):
    packed = pack(bundle.root, tmp_path / "out" / "a.dkb")
    made = library.sign(packed, keys[0])
    Bundle.open(packed).verify(keys[1])
    assert library.sign(bundle.root, keys[0]) == made
    assert packed.read_bytes() == pack(bundle.root, tmp_path / "b.dkb").read_bytes()
    assert [path.name for path in packed.parent.iterdir()] == ["a.dkb"]


def test_what_is_wrong_with_a_packed_bundle_is_said_of_the_file_that_was_given(bundle, keys, tmp_path):
    import zipfile

    packed = pack(bundle.root, tmp_path / "mine.dkb")
    with pytest.raises(BundleError, match=r"mine\.dkb") as unsigned:
        Bundle.open(packed).verify(keys[1])
    assert ".cache" not in unsigned.value.message
    with zipfile.ZipFile(packed) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}

    def written(changes):
        with zipfile.ZipFile(tmp_path / "broken.dkb", "w") as archive:
            for name, data in {**entries, **changes}.items():
                archive.writestr(name, data)
        return tmp_path / "broken.dkb"

    changed = entries["selftest/reference.npy"][:-1] + b"?"
    for changes in ({"selftest/reference.npy": changed}, {"manifest.json": b"{"}, {"manifest.json": b'{"schema": 1}'}):
        with pytest.raises(BundleError, match=r"broken\.dkb") as refused:
            Bundle.open(written(changes))
        assert "unpacked" not in refused.value.message


def test_a_signature_as_large_as_a_model_is_not_unpacked(bundle, tmp_path):
    (bundle.root / "manifest.sig").write_bytes(bytes(10_000))
    with pytest.raises(BundleError, match=r"manifest\.sig is too large"):
        unpack(pack(bundle.root, tmp_path / "a.dkb"), tmp_path / "b")


def test_a_bundle_that_is_written_again_is_no_longer_signed(bundle, keys, tmp_path):
    library.sign(bundle.root, keys[0])
    made.bundle(tmp_path, provenance={"deploykit": "9"})
    assert not (bundle.root / "manifest.sig").exists()


def test_loading_with_a_key_gives_the_encoder(bundle, keys):
    pytest.importorskip("onnxruntime")
    library.sign(bundle.root, keys[0])
    with load(bundle.root, require_signature=keys[1]) as encoder:
        assert encoder.encode(["w1"]).shape == (1, 6)
    with pytest.raises(InputError, match="verify is off"):
        load(bundle.root, require_signature=keys[1], verify=False)


def test_keys_are_private_and_never_written_over(keys):
    private, public = keys
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(RecipeError, match="is there already"):
        library.new_key(private)
    assert (private.read_bytes(), public.read_bytes()) == before


def test_files_that_are_no_keys_are_named(bundle, keys, tmp_path):
    private, public = keys
    (tmp_path / "text").write_text("hello")
    for path in (private, tmp_path / "text", tmp_path / "nothing"):
        with pytest.raises(InputError, match=path.name):
            signature.public_key(path)
    for path in (public, tmp_path / "text", tmp_path / "nothing"):
        with pytest.raises(RecipeError, match=path.name):
            library.sign(bundle.root, path)


def test_a_key_of_another_kind_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    key = generate_private_key(SECP256R1())
    none = pem.NoEncryption()
    (tmp_path / "ec.pem").write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, none))
    shown = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "ec.pub").write_bytes(shown)
    with pytest.raises(RecipeError, match="of another kind"):
        library.private_key(tmp_path / "ec.pem")
    with pytest.raises(InputError, match="holds no public Ed25519 key"):
        signature.public_key(tmp_path / "ec.pub")


def test_an_encrypted_key_is_said(tmp_path):
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    secret = Ed25519PrivateKey.generate().private_bytes(
        pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.BestAvailableEncryption(b"x")
    )
    (tmp_path / "key.pem").write_bytes(secret)
    with pytest.raises(RecipeError, match="is encrypted"):
        library.private_key(tmp_path / "key.pem")


def test_without_the_package_the_extra_is_named(bundle, keys, monkeypatch):
    library.sign(bundle.root, keys[0])
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingError, match="cryptography is not installed") as caught:
        Bundle.open(bundle.root).verify(keys[1])
    assert 'pip install "cryptography>=' in caught.value.hint
    with pytest.raises(MissingError):
        library.sign(bundle.root, keys[0])


def test_an_unsigned_load_does_not_import_it(bundle):
    code = "import sys; from deploykit.runtime import Bundle; Bundle.open(sys.argv[1]).verify(); "
    code += "import deploykit.runtime.loading; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(bundle.root)], check=True, env={**os.environ})
