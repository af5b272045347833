import json
import os

import pytest

from deploykit.runtime.bundle import Bundle, parse_manifest
from deploykit.runtime.errors import BundleError
from deploykit.runtime.names import check_distinct, check_name, inside


def rewrite(bundle, change):
    """Apply ``change`` to the parsed manifest of ``bundle`` on disk."""
    path = bundle.root / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_whole_bundle_is_accepted(tiny):
    opened = Bundle.open(tiny.root)
    opened.verify()
    assert len(opened.digest) == 64
    assert opened.manifest == tiny.manifest


def test_hard_links_are_accepted(tiny):
    path = tiny.root / "models" / "fp32.onnx"
    os.link(path, tiny.root.parent / "other.onnx")
    Bundle.open(tiny.root).verify()
    assert path.stat().st_nlink == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, the manifest says"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), "was altered"),
        (lambda path: path.with_name("more.txt").write_text("x"), "is not listed"),
        (
            lambda path: (path.rename(path.parents[2] / "away"), path.symlink_to(path.parents[2] / "away")),
            "symbolic link",
        ),
        (lambda path: path.with_name("folder").symlink_to("/etc"), "symbolic link"),
        (lambda path: os.mkfifo(path.with_name("pipe")), "no plain file"),
    ],
)
def test_a_damaged_bundle_is_refused_with_the_file_and_the_reason(tiny, damage, reason):
    damage(tiny.root / "preprocess" / "tokenizer.json")
    with pytest.raises(BundleError, match=reason) as caught:
        Bundle.open(tiny.root).verify()
    assert "preprocess/" in str(caught.value)


def test_a_manifest_that_changes_after_opening_is_noticed(tiny):
    opened = Bundle.open(tiny.root)
    rewrite(tiny, lambda data: data["card"].update(name="other"))
    with pytest.raises(BundleError, match="changed since it was opened"):
        opened.verify()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(schema="deploykit.bundle/9"), "schema"),
        (lambda d: d.pop("card"), "lacks the key 'card'"),
        (lambda d: d.update(surprise=1), "unknown key 'surprise'"),
        (lambda d: d["files"].update({"../out": {"sha256": "0" * 64, "size": 1}}), "leaves its folder"),
        (lambda d: d["files"].update({"/etc/passwd": {"sha256": "0" * 64, "size": 1}}), "is absolute"),
        (
            lambda d: d["files"].update({"MODELS/FP32.onnx": {"sha256": "0" * 64, "size": 1}}),
            "one file on some systems",
        ),
        (lambda d: d["files"].update({"Manifest.json": {"sha256": "0" * 64, "size": 1}}), "one file on some systems"),
        (lambda d: d["files"].update({"ops.so": {"sha256": "0" * 64, "size": 1}}), "library"),
        (lambda d: d["files"].update({"a": {"sha256": "0", "size": 1}}), "no valid size or SHA-256"),
        (lambda d: d["files"].pop("models/fp32.onnx"), "does not list"),
        (lambda d: d["files"].pop("preprocess/tokenizer.json"), "preprocess.tokenizer"),
        (lambda d: d["files"].pop("selftest/reference.npy"), "selftest.reference"),
        (lambda d: d["variants"][0].update(path="../x.onnx"), "does not list"),
        (lambda d: d["variants"][0].update(path="preprocess/x.xml"), "does not list"),
        (lambda d: d["variants"].append(d["variants"][0]), "same name"),
        (lambda d: d.update(default="nothing"), "default variant 'nothing'"),
        (lambda d: d["files"].update({"manifest.sig": {"sha256": "0" * 64, "size": 1}}), "one file on some systems"),
        (lambda d: d["files"].update({"a": {"sha256": "G" * 64, "size": 1}}), "no valid size or SHA-256"),
        (lambda d: d["variants"][0].update(target="a.b"), "has the target 'a.b'"),
        (lambda d: d["variants"][0].update(name="\x1b[2J"), "no plain text"),
    ],
)
def test_a_wrong_manifest_is_refused(tiny, change, reason):
    rewrite(tiny, change)
    with pytest.raises(BundleError, match=reason):
        Bundle.open(tiny.root)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no valid JSON"),
        (b"[1]", "schema None"),
        (b'{"schema": "a", "schema": "b"}', "same key twice"),
        (b'{"x": NaN}', "no JSON number"),
        (b"[" * 100_000, "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b" " * (5 * 2**20), "larger than"),
        (b'{"x": -1e400}', "larger than any number"),
        (b'{"x": 123456789012345678901}', "larger than any size"),
        (b'{"x": "\\uD83D"}', "no valid JSON"),
        (b'{"x": "\\ud83d\\ude00"}', "schema None"),
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data, reason):
    with pytest.raises(BundleError, match=reason):
        parse_manifest(data)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_a_manifest_that_is_no_plain_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "manifest.json")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(tmp_path)


def test_the_manifest_as_it_was_opened_or_not_at_all(tiny):
    opened = Bundle.open(tiny.root)
    assert opened.manifest_bytes() == (tiny.root / "manifest.json").read_bytes()
    rewrite(tiny, lambda data: data["card"].update(name="other"))
    with pytest.raises(BundleError, match="changed since it was opened"):
        opened.manifest_bytes()
    (tiny.root / "manifest.json").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        opened.manifest_bytes()


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is no bundle"):
        Bundle.open(tmp_path)


def test_a_path_without_anything_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="there is no bundle"):
        Bundle.open(tmp_path / "nothing")


def test_the_portable_model_is_always_a_variant(shared):
    assert shared.variant("portable").name == "onnxruntime-fp32"
    with pytest.raises(BundleError, match="no variant 'tensorrt-fp16'"):
        shared.variant("tensorrt-fp16")


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "models/fp32.onnx",
        "preprocess/naïve.json",
        "LICENSE",
        "a b/c-d_e.f",
        "console.json",
        "com10",
        "common/nullable.txt",
    ],
)
def test_ordinary_names_are_allowed(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a//b",
        "a/",
        "./a",
        "a/../b",
        "..",
        "a\\b",
        "C:a",
        "a\0b",
        "a\nb",
        "a.",
        "a /b",
        "x" * 300,
        "a.so.1",
        "a.PKL",
        "CON",
        "models/nul.onnx",
        "Lpt9.txt",
        "com¹",
        "a?b",
        "a|b",
        "x.plan",
        "x.TRT",
    ],
)
def test_odd_names_are_refused(name):
    with pytest.raises(BundleError, match="the name"):
        check_name(name)


def test_names_that_differ_in_case_or_composition_alone_are_refused():
    with pytest.raises(BundleError, match="one file on some systems"):
        check_distinct(["é", "e\u0301"])
