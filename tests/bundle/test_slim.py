import json
from dataclasses import replace

import numpy as np
import pytest

from deploykit.bundle.slim import Choice, foreign, slim
from deploykit.errors import BundleError, RecipeError, UnknownNameError
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import Variant
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

VNNI, AMX = "avx512_vnni|avx_vnni|asimd", "amx_bf16|avx512_bf16"


@pytest.fixture
def bundle(tmp_path):
    """Five variants for several devices, two of which share their files, and one of which is the portable model."""
    work = tmp_path / "parts"
    work.mkdir()

    def variant(name, target, suffix, **requires):
        files = {
            f"models/{name}{tail}": work / f"{name}{tail}"
            for tail in (suffix, *((".bin",) if suffix == ".xml" else ()))
        }
        for path in files.values():
            path.write_bytes(path.name.encode() * 100)
        latency = {"hardware": "x", "single": {"p50_ms": 1.0, "low_ms": 1, "high_ms": 1, "calls": 9, "shape": [1, 4]}}
        return Variant(name, target, name, f"models/{name}{suffix}", requires=requires, latency=latency), files

    shared = variant("openvino-bf16", "openvino", ".xml", architecture=["x86_64"], cpu_features=[AMX])
    same = {f"models/openvino-fp32{tail}": shared[1][f"models/openvino-bf16{tail}"] for tail in (".xml", ".bin")}
    variants = [
        shared,
        (Variant("openvino-fp32", "openvino", "fp32", "models/openvino-fp32.xml"), same),
        (Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx"), {}),
        variant("onnxruntime-int8", "onnxruntime", ".onnx", cpu_features=[VNNI]),
        variant("onnxruntime-int8.partial", "onnxruntime", ".onnx", cpu_features=["avx512_vnni"]),
    ]
    bounds = {"onnxruntime-fp32": 0.99999, "openvino-bf16": 0.995, "onnxruntime-int8": 0.9}
    selftest = replace(made.contents(tmp_path / "work").selftest, min_cosine=bounds)
    provenance = {"deploykit": "0.1.0", "build": "b" * 64}
    changes = {"variants": variants, "selftest": selftest, "default": "openvino-bf16", "provenance": provenance}
    return made.bundle(tmp_path, **changes)


def names(written):
    return [variant.name for variant in written.bundle.manifest.variants]


def test_a_device_gets_what_its_architecture_can_run(bundle, tmp_path):
    written = slim(bundle.root, tmp_path / "arm.bundle", Choice("arm64"))
    assert names(written) == ["openvino-fp32", "onnxruntime-fp32", "onnxruntime-int8"]
    assert written.dropped == {
        "openvino-bf16": "it is for x86_64",
        "onnxruntime-int8.partial": "it needs avx512_vnni, which no aarch64 has",
    }
    Bundle.open(tmp_path / "arm.bundle").verify()


def test_the_files_of_what_is_left_out_are_gone_and_shared_ones_stay(bundle, tmp_path):
    written = slim(bundle.root, tmp_path / "arm.bundle", Choice("aarch64"))
    kept = {name for name in written.bundle.manifest.files if name.startswith("models/")}
    # The two OpenVINO variants are one pair of files, stored under the name of the one that is left out.
    assert kept == {
        f"models/{n}" for n in ("fp32.onnx", "openvino-bf16.xml", "openvino-bf16.bin", "onnxruntime-int8.onnx")
    }
    assert written.bytes_after < written.bytes_before
    assert written.bytes_after == sum(entry.size for entry in written.bundle.manifest.files.values())
    assert written.portable_bytes == (bundle.root / "models" / "fp32.onnx").stat().st_size


def test_every_file_that_stays_is_the_same_to_the_byte(bundle, tmp_path):
    written = slim(bundle.root, tmp_path / "small.bundle", Choice("aarch64", targets=["onnxruntime"]))
    for name in written.bundle.manifest.files:
        if name not in ("MODEL_CARD.md", "sbom.cdx.json"):
            assert (written.bundle.root / name).read_bytes() == (bundle.root / name).read_bytes(), name


def test_the_manifest_says_where_it_comes_from_and_is_no_finished_build(bundle, tmp_path):
    manifest = slim(bundle.root, tmp_path / "arm.bundle", Choice("aarch64")).bundle.manifest
    origin = manifest.provenance["slimmed"]
    assert origin["from"] == bundle.digest
    assert origin["asked"] == {"architecture": "aarch64"}
    assert set(origin["left_out"]) == {"openvino-bf16", "onnxruntime-int8.partial"}
    assert "build" not in manifest.provenance
    assert origin["build"] == "b" * 64
    assert manifest.default == ""
    assert manifest.selftest.min_cosine == {"onnxruntime-fp32": 0.99999, "onnxruntime-int8": 0.9}


def test_the_default_stays_where_it_is_kept(bundle, tmp_path):
    written = slim(bundle.root, tmp_path / "x86.bundle", Choice("x86_64", targets=["openvino"]))
    assert written.bundle.manifest.default == "openvino-bf16"
    assert names(written) == ["openvino-bf16", "openvino-fp32"]


def test_the_portable_model_keeps_its_bound_when_its_variant_is_left_out(bundle, tmp_path):
    written = slim(bundle.root, tmp_path / "one.bundle", Choice(variants=["onnxruntime-int8"]))
    assert written.bundle.manifest.selftest.min_cosine == {"onnxruntime-int8": 0.9, "portable": 0.99999}


def test_the_card_and_the_list_of_materials_follow(bundle, tmp_path):
    root = slim(bundle.root, tmp_path / "arm.bundle", Choice("aarch64")).bundle.root
    card = (root / "MODEL_CARD.md").read_text()
    assert "| openvino-bf16 |" not in card
    assert "slimmed" in card
    listed = {c["name"] for c in json.loads((root / "sbom.cdx.json").read_text())["components"] if c["type"] == "file"}
    assert "models/onnxruntime-int8.partial.onnx" not in listed
    assert "models/onnxruntime-int8.onnx" in listed


def test_the_portable_model_alone_still_encodes(tmp_path):
    pytest.importorskip("onnxruntime")
    from deploykit.runtime import load
    from deploykit.runtime.selftest import selftest

    bundle = made.bundle(tmp_path)
    written = slim(bundle.root, tmp_path / "one.bundle", Choice(targets=["openvino"]))
    assert names(written) == ["openvino-fp32"]
    made_up = made.bundle(tmp_path / "b", variants=[made.contents(tmp_path / "c").variants[1]], default="")
    alone = slim(made_up.root, tmp_path / "portable.bundle", Choice(variants=["portable"]))
    assert names(alone) == []
    with load(alone.bundle.root) as encoder:
        assert encoder.report().variant == "portable"
        assert np.allclose(encoder.encode(["w1 w2"]), made.expected("w1 w2"), atol=1e-6)
    assert [result.status for result in selftest(alone.bundle)] == ["passed"]


def test_a_signature_is_left_behind_and_that_is_said(bundle, tmp_path):
    pytest.importorskip("cryptography")
    from deploykit.bundle.sign import new_key, sign

    assert not slim(bundle.root, tmp_path / "a.bundle", Choice("aarch64")).unsigned
    new_key(tmp_path / "key.pem")
    sign(bundle.root, tmp_path / "key.pem")
    written = slim(bundle.root, tmp_path / "a.bundle", Choice("aarch64"))
    assert written.unsigned
    assert not (tmp_path / "a.bundle" / "manifest.sig").exists()


def test_a_packed_bundle_is_taken(bundle, tmp_path, monkeypatch):
    from deploykit.bundle.pack import pack

    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    packed = pack(bundle.root, tmp_path / "tiny.dkb")
    written = slim(packed, tmp_path / "arm.bundle", Choice("aarch64"))
    assert written.bundle.manifest.provenance["slimmed"]["from"] == bundle.digest


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        (Choice("aarch65"), UnknownNameError, "no architecture 'aarch65'"),
        (Choice(targets=["onnxruntim"]), UnknownNameError, "'onnxruntim'"),
        (Choice(variants=["onnxruntime-int9"]), UnknownNameError, "no variant 'onnxruntime-int9'"),
        (Choice("aarch64", variants=["openvino-bf16"]), RecipeError, "nothing is left .* it is for x86_64"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(bundle, tmp_path, choice, error, message):
    with pytest.raises(error, match=message):
        slim(bundle.root, tmp_path / "out.bundle", choice)
    assert not (tmp_path / "out.bundle").exists()


def test_the_nearest_architecture_is_named(bundle, tmp_path):
    with pytest.raises(UnknownNameError) as refusal:
        slim(bundle.root, tmp_path / "out.bundle", Choice("aarch65"))
    assert "aarch64" in refusal.value.hint


def test_the_bundle_itself_and_what_is_no_bundle_are_never_replaced(bundle, tmp_path):
    with pytest.raises(RecipeError, match="is the bundle itself"):
        slim(bundle.root, bundle.root, Choice("aarch64"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years of work")
    with pytest.raises(RecipeError, match="is no bundle, so it is not replaced"):
        slim(bundle.root, tmp_path / "thesis", Choice("aarch64"))
    with pytest.raises(RecipeError, match="packed"):
        slim(bundle.root, tmp_path / "out.dkb", Choice("aarch64"))


def test_a_damaged_bundle_is_not_slimmed(bundle, tmp_path):
    (bundle.root / "models" / "onnxruntime-int8.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="onnxruntime-int8"):
        slim(bundle.root, tmp_path / "out.bundle", Choice("aarch64"))


@pytest.mark.parametrize(
    ("requires", "architecture", "runs"),
    [
        ({}, "aarch64", True),
        ({"architecture": ["arm64"]}, "aarch64", True),
        ({"architecture": ["arm64"]}, "x86_64", False),
        ({"cpu_features": ["avx2|asimd"]}, "aarch64", True),
        ({"cpu_features": ["asimd", "avx2"]}, "aarch64", False),
        ({"cpu_features": ["sve"]}, "x86_64", False),
        ({"cpu_features": ["some_new_thing"]}, "aarch64", True),
    ],
)
def test_needs_tell_the_architecture(requires, architecture, runs):
    assert (foreign(Variant("v", "t", "p", "f", requires=requires), architecture) == "") is runs


def test_the_portable_model_is_left_out_on_demand_and_the_manifest_says_it(bundle, tmp_path):
    done = slim(bundle.root, tmp_path / "new.bundle", Choice(variants=["onnxruntime-int8"], portable=False))
    assert (done.kept, done.portable_bytes) == (("onnxruntime-int8",), 0)
    manifest = json.loads((done.bundle.root / "manifest.json").read_text())
    assert manifest["portable"] is False
    assert not any(name.startswith("models/fp32.") for name in manifest["files"])
    assert "portable" not in manifest["selftest"]["min_cosine"]
    assert manifest["provenance"]["slimmed"]["asked"]["no_portable"] is True
    again = slim(done.bundle.root, tmp_path / "again.bundle", Choice())
    assert not again.bundle.manifest.portable
    assert "portable" not in json.loads((bundle.root / "manifest.json").read_text())


def test_what_needs_the_portable_model_is_refused_with_the_way_out(bundle, tmp_path):
    import deploykit

    left = slim(bundle.root, tmp_path / "new.bundle", Choice(targets=["openvino"], portable=False)).bundle
    for name in ("portable", "onnxruntime-fp32"):
        with pytest.raises(BundleError, match=r"without its portable fp32 model|no variant 'onnxruntime-fp32'"):
            left.variant(name)
    with pytest.raises(BundleError, match=r"new\.bundle' was slimmed without its portable fp32 model"):
        deploykit.load(left.root, "portable")
    with pytest.raises(RecipeError, match="nothing is left"):
        slim(bundle.root, tmp_path / "none.bundle", Choice(variants=["portable"], portable=False))


def test_a_bundle_whose_only_variant_cannot_run_says_what_was_left_out(tmp_path):
    import deploykit
    from deploykit.errors import MissingError

    model = tmp_path / "far.onnx"
    model.write_bytes(b"far")
    far = Variant("onnxruntime-int8", "onnxruntime", "int8", "models/far.onnx", requires={"architecture": ["s390x"]})
    whole = made.bundle(tmp_path, variants=[(far, {"models/far.onnx": model})], default=far.name)
    left = slim(whole.root, tmp_path / "left.bundle", Choice(variants=["onnxruntime-int8"], portable=False)).bundle
    with pytest.raises(MissingError, match="no variant of") as refused:
        deploykit.load(left.root)
    assert "--no-portable" in refused.value.hint


def test_a_manifest_that_lost_its_portable_model_is_still_refused(bundle):
    path = bundle.root / "manifest.json"
    data = json.loads(path.read_text())
    del data["files"]["models/fp32.onnx"]
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="which the manifest does not list"):
        Bundle.open(bundle.root)
