import json
from dataclasses import replace

import pytest

from deploykit.runtime.bundle import Bundle
from deploykit.runtime.errors import BundleError
from deploykit.runtime.manifest import FileEntry, Variant
from deploykit.runtime.trust import models, onnx_model
from tests.runtime import hostile


def variant(target, settings):
    return Variant("v", target, "fp32", "models/fp32.onnx", settings)


def test_a_whole_bundle_passes_in_the_child_and_onnx_looks_too(shared):
    assert models.check_in_child(shared) is True


@pytest.mark.parametrize("name", ["range_of_17_gb", "nested_functions", "unknown_domain", "a_circle"])
def test_the_child_says_what_it_refused(tiny, name):
    maker, reason = hostile.CASES[name]
    with pytest.raises(BundleError, match=reason) as caught:
        models.check_in_child(Bundle.open(maker(tiny.root)))
    assert caught.value.hint


def test_what_onnx_alone_knows_is_refused_too(tiny):
    data = hostile.model([hostile.node("NoSuchOperator", ["x"], ["y"])])
    path = hostile.with_model(tiny.root, data)
    models.check_models(Bundle.open(path))
    with pytest.raises(BundleError, match="does not pass onnx's checker"):
        models.check_in_child(Bundle.open(path))


def test_a_child_without_room_is_a_refusal(shared):
    with pytest.raises(BundleError, match=r"within \d+ MiB|Cannot allocate memory"):
        models.check_in_child(shared, models.Limits(memory_mib=1))


def test_a_child_without_time_is_a_refusal(shared):
    with pytest.raises(BundleError, match=r"still being checked after 0 s|cannot be checked"):
        models.check_in_child(shared, models.Limits(seconds=0))


def test_control_flow_is_let_through_when_asked(tiny):
    path = hostile.CASES["control_flow"][0](tiny.root)
    models.check_models(Bundle.open(path), control_flow=True)


def test_external_data_in_a_listed_file_is_let_through(tiny):
    (tiny.root / "models" / "weights.bin").write_bytes(bytes(12))
    path = hostile.with_model(tiny.root, hostile.external("weights.bin", offset="0", length="12"))
    models.check_models(Bundle.open(path))


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-1"), ("length", "0x9"), ("offset", "9" * 30), ("kind", "fifo")]
)
def test_odd_words_about_external_data_are_refused(tiny, key, value):
    (tiny.root / "models" / "weights.bin").write_bytes(bytes(12))
    path = hostile.with_model(tiny.root, hostile.external("weights.bin", **{key: value}))
    with pytest.raises(BundleError, match="the constant 'a'"):
        models.check_models(Bundle.open(path))


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("openvino", {"INFERENCE_PRECISION_HINT": "bf16"}),
        ("onnxruntime", {"config": {"optimization.disable_specified_optimizers": "SkipLayerNormFusion"}}),
        ("onnxruntime", {"graph_optimization": "basic"}),
        ("third-party", {"anything": "/anywhere"}),
    ],
)
def test_settings_that_name_no_file_pass(target, settings):
    models.check_settings(variant(target, settings))


@pytest.mark.parametrize(
    ("target", "settings"),
    [
        ("openvino", {"CACHE_DIR": "/tmp"}),
        ("openvino", {"WEIGHTS_PATH": "/etc/passwd"}),
        ("onnxruntime", {"config": {"ep.context_file_path": "/tmp/x"}}),
        ("onnxruntime", {"config": {"session.model_external_initializers_file_folder_path": "/"}}),
        ("onnxruntime", {"config": ["a"]}),
    ],
)
def test_settings_that_could_reach_elsewhere_are_refused(target, settings):
    with pytest.raises(BundleError, match="setting"):
        models.check_settings(variant(target, settings))


def test_a_form_that_is_neither_onnx_nor_openvinos_is_refused(tiny):
    (tiny.root / "models" / "x.ort").write_bytes(b"ORTM")
    hostile.edited(lambda data: data["variants"][0].update(path="models/x.ort"))(tiny.root)
    opened = Bundle.open(hostile.seal(tiny.root))
    with pytest.raises(BundleError, match=r"neither \.onnx nor \.xml"):
        models.check_model(opened, opened.manifest.variants[0])


def test_a_domain_that_is_named_and_not_used_passes(tmp_path):
    (tmp_path / "m.onnx").write_bytes(hostile.model([hostile.node("Identity", ["x"], ["y"])]))
    onnx_model.check(onnx_model.Place(tmp_path, "m.onnx", {}))


def test_fused_attention_of_onnxruntime_passes(tmp_path):
    nodes = [hostile.node("MultiHeadAttention", ["x", "x", "x"], ["y"], domain="com.microsoft", num_heads=2)]
    (tmp_path / "m.onnx").write_bytes(hostile.model(nodes))
    onnx_model.check(onnx_model.Place(tmp_path, "m.onnx", {"w": FileEntry("0" * 64, 1)}))


def test_each_variant_of_a_bundle_is_checked(tiny):
    data = json.loads((tiny.root / "manifest.json").read_text())
    (tiny.root / "models" / "more.onnx").write_bytes(b"\x08\x09")
    data["variants"].append({**data["variants"][0], "name": "more", "path": "models/more.onnx"})
    hostile.write_manifest(tiny.root, data)
    opened = Bundle.open(hostile.seal(tiny.root))
    models.check_model(opened, opened.manifest.variants[0])
    with pytest.raises(BundleError, match=r"more\.onnx"):
        models.check_models(opened)


def test_the_portable_model_is_checked_where_no_variant_uses_it(tiny):
    opened = replace(tiny, manifest=replace(tiny.manifest, variants=(), default=""))
    (tiny.root / hostile.MODEL).write_bytes(b"\x08\x09")
    with pytest.raises(BundleError, match=r"fp32\.onnx"):
        models.check_models(opened)
