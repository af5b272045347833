import json
from dataclasses import replace

import pytest

from deploykit.bundle import model_card, sign
from deploykit.bundle.record import record, report
from deploykit.errors import BundleError, RecipeError
from deploykit.report import model, text
from deploykit.runtime import devices
from deploykit.runtime.bundle import Bundle
from deploykit.runtime.manifest import SIGNATURE_NAME
from deploykit.runtime.selftest import VariantResult
from tests.runtime import made

pytest.importorskip("onnx")
pytest.importorskip("tokenizers")

PI = {
    "id": "0a1b2c3d",
    "cpu": "Cortex-A72",
    "architecture": "aarch64",
    "features": ["asimd"],
    "cores": 4,
    "memory_gib": 4,
    "system": "Linux",
}


@pytest.fixture
def bundle(tmp_path):
    return made.bundle(tmp_path)


@pytest.fixture
def say(tmp_path):
    """Writes a device's report on a bundle into a file."""
    count = iter(range(100))

    def write(bundle, cosine=0.9987, changed=None, **device):
        names = [variant.name for variant in bundle.manifest.variants]
        results = [VariantResult(name, "passed", cosine, "", 4.25) for name in names]
        results.append(VariantResult("portable", "refused", None, "no memory", None))
        data = report(bundle, results) | {"device": PI | device, "bundle": "x"} | (changed or {})
        path = tmp_path / f"report{next(count)}.json"
        path.write_text(json.dumps(data))
        return path

    return write


def rows(bundle):
    return devices.rows(Bundle.open(bundle.root).manifest.variants[0])


def test_a_devices_figures_stand_in_the_manifest_of_a_bundle_that_is_still_whole(bundle, say):
    done = record(bundle.root, [say(bundle)])
    opened = Bundle.open(bundle.root)
    opened.verify()
    assert done.digest == opened.digest != bundle.digest
    (row,) = rows(bundle)
    assert (row["architecture"], row["features"], row["hardware"]) == ("aarch64", ["asimd"], "0a1b2c3d")
    assert (row["cosine_min"], row["p50_ms"], row["inputs"], row["status"]) == (0.9987, 4.25, 5, "passed")
    assert "deploykit" in row["runtime"]


def test_nothing_else_changes(bundle, say):
    record(bundle.root, [say(bundle)])
    now = Bundle.open(bundle.root).manifest
    variants = tuple(replace(v, drift=old.drift) for v, old in zip(now.variants, bundle.manifest.variants, strict=True))
    changed = {name for name, entry in now.files.items() if entry != bundle.manifest.files[name]}
    assert changed == {"MODEL_CARD.md", "sbom.cdx.json"}
    assert set(now.provenance) - set(bundle.manifest.provenance) == {"recorded_onto"}
    assert replace(now, variants=variants, files={}, provenance={}) == replace(bundle.manifest, files={}, provenance={})
    assert sorted(path.name for path in bundle.root.parent.iterdir() if path.name.startswith(".")) == []


def test_the_card_and_inspect_show_them(bundle, say):
    record(bundle.root, [say(bundle)])
    manifest = Bundle.open(bundle.root).manifest
    said = "aarch64 (Cortex-A72; asimd)"
    assert said in (bundle.root / model_card.NAME).read_text()
    assert "worst cosine 0.998700 over 5 inputs" in (bundle.root / model_card.NAME).read_text()
    assert said in text(manifest, "b", 1000)
    assert said in model.from_manifest(manifest, "b").variants[0].devices[0]


def test_the_same_kind_of_device_replaces_its_record_and_another_adds_one(bundle, say):
    record(bundle.root, [say(bundle), say(bundle, cpu="Cortex-A76"), say(bundle, 0.997)])
    assert {row["cpu"]: row["cosine_min"] for row in rows(bundle)} == {"Cortex-A72": 0.997, "Cortex-A76": 0.9987}


def test_a_report_on_the_bundle_as_it_was_before_a_recording_is_taken(bundle, say):
    record(bundle.root, [say(bundle)])
    record(bundle.root, [say(bundle, cpu="Cortex-A76")])
    record(bundle.root, [say(Bundle.open(bundle.root), cpu="N100", architecture="x86_64")])
    assert len(rows(bundle)) == 3
    Bundle.open(bundle.root).verify()


def test_a_report_on_another_bundle_is_refused_and_nothing_changes(bundle, say):
    with pytest.raises(RecipeError, match="another bundle"):
        record(bundle.root, [say(bundle), say(bundle, changed={"digest": "0" * 64})])
    assert Bundle.open(bundle.root).digest == bundle.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "deploykit.bench/1"},
        {"device": "a"},
        {"device": PI | {"cpu": "\x1b[2J"}},
        {"device": PI | {"features": [1]}},
        {"runtime": {"onnxruntime": 1}},
        {"inputs": True},
        {"variants": [{"variant": "of another", "status": "passed"}]},
        {"variants": [{"variant": "openvino-fp32", "status": "passed", "cosine_min": "1", "p50_ms": None}]},
        {"variants": [{"variant": "openvino-fp32", "status": "passed", "cosine_min": None, "p50_ms": None}]},
        {"variants": [{"variant": "openvino-fp32", "status": "fine", "cosine_min": 1.0, "p50_ms": None}]},
    ],
)
def test_what_is_no_whole_report_is_refused(bundle, say, changes):
    with pytest.raises(RecipeError):
        record(bundle.root, [say(bundle, changed=changes)])
    assert Bundle.open(bundle.root).digest == bundle.digest


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": NaN}', "[" * 100_000])
def test_what_is_no_json_object_is_refused(bundle, tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(RecipeError):
        record(bundle.root, [tmp_path / "r.json"])


def test_times_of_an_emulated_device_can_be_left_out(bundle, say):
    record(bundle.root, [say(bundle)], times=False)
    assert rows(bundle)[0]["p50_ms"] is None
    assert rows(bundle)[0]["cosine_min"] == 0.9987


def test_a_signature_goes_only_when_asked(bundle, say, tmp_path):
    pytest.importorskip("cryptography")
    sign.new_key(tmp_path / "k.pem")
    sign.sign(bundle.root, tmp_path / "k.pem")
    with pytest.raises(RecipeError, match="signed"):
        record(bundle.root, [say(bundle)])
    assert (bundle.root / SIGNATURE_NAME).exists()
    assert record(bundle.root, [say(bundle)], drop_signature=True).dropped_signature
    assert not (bundle.root / SIGNATURE_NAME).exists()
    Bundle.open(bundle.root).verify()


def test_a_bundle_that_was_altered_is_refused(bundle, say):
    path = say(bundle)
    (bundle.root / "LICENSE").write_text("altered")
    with pytest.raises(BundleError):
        record(bundle.root, [path])


def test_records_that_a_stranger_wrote_badly_are_not_shown(bundle):
    variant = replace(bundle.manifest.variants[0], drift={"devices": [{"status": "passed"}, 3, "x"]})
    assert devices.rows(variant) == []
    assert devices.rows(replace(variant, drift={"devices": "x"})) == []


def test_the_portable_variant_stays_the_portable_one(bundle, say):
    from deploykit.runtime.manifest import Variant

    variant = Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx", drift={"devices": []})
    assert replace(bundle, manifest=replace(bundle.manifest, variants=(variant,))).portable is variant
