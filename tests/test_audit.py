"""An audit's sentence must not flatter, and a diff must call a fallback worse and an upgrade neutral."""

from __future__ import annotations

import pytest

from deploykit.audit import Change, describe, diff, products

INT8 = {
    "engine": "openvino 2026.4.1",
    "device": "CPU",
    "asked": "int8",
    "effective": "bf16",
    "operations": {"FullyConnected": {"int8": 31, "bf16": 5}, "MVN": {"bf16": 13}, "Gather": {"i64": 1, "fp32": 3}},
    "products": {"int8": 31, "bf16": 5},
    "attention": {"found": 6, "fused": 6},
}


def changed(**changes):
    return {key: value for key, value in (INT8 | changes).items() if value is not None}


def only(changes) -> Change:
    assert len(changes) == 1, changes
    return changes[0]


def test_a_mix_is_counted_with_what_was_asked_first():
    assert describe(INT8) == (
        "openvino 2026.4.1 on CPU, asked for int8, runs 31 of 36 matrix products in int8 and 5 in bf16; "
        "6 of 6 attentions are fused."
    )


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"int8": 36}, "runs all 36 matrix products in int8;"),
        ({"int8": 1}, "runs 1 matrix product in int8;"),
        ({"fp32": 36}, "runs all 36 matrix products in fp32, none in int8;"),
        ({"fp32": 30, "bf16": 6}, "runs 30 of 36 matrix products in fp32, 6 in bf16 and none in int8;"),
        ({"fp32": 4, "bf16": 6, "int8": 1}, "runs 1 of 11 matrix products in int8, 6 in bf16 and 4 in fp32;"),
        ({}, "runs no matrix product;"),
        ({"int8": 0}, "runs no matrix product;"),
    ],
)
def test_products_outside_the_precision_asked_for_are_never_hidden(counts, said):
    assert said in describe(changed(products=counts))


def test_dynamic_int8_runs_int8_kernels():
    assert "asked for int8-dynamic, runs all 36 matrix products in int8;" in describe(
        changed(asked="int8-dynamic", products={"int8": 36})
    )


def test_storage_alone_is_said_to_be_storage_alone():
    facts = {"engine": "onnxruntime 1.32.0", "device": "CPUExecutionProvider", "asked": "fp16", "stored": "fp16"}
    assert describe(facts | {"products": {"fp32": 36}, "casts_folded": False}) == (
        "onnxruntime 1.32.0 on CPUExecutionProvider, asked for fp16, runs all 36 matrix products in fp32, none in fp16"
        "; only the storage of the weights is fp16; stored weights are cast at every call."
    )


def test_weights_stored_wider_than_the_products_are_not_mentioned():
    assert "storage" not in describe(changed(stored="fp32"))
    assert "storage" not in describe(changed(stored="int8"))


def test_the_audit_of_an_older_bundle_is_counted_from_its_operations():
    old = {
        "engine": "onnxruntime 1.30.0",
        "operations": {"MatMul": {"fp32": 30}, "Conv": {"float": 1}, "Add": {"fp32": 9}},
    }
    assert products(old) == {"fp32": 31}
    assert describe(old) == "onnxruntime 1.30.0 runs all 31 matrix products in fp32."


@pytest.mark.parametrize("key", [*INT8, "nothing at all"])
def test_a_missing_key_is_neither_described_nor_compared(key):
    lacking = {} if key == "nothing at all" else changed(**{key: None})
    assert describe(lacking)
    assert diff(lacking, INT8) == diff(INT8, lacking) == ()


def test_equal_audits_do_not_differ():
    assert diff(INT8, dict(INT8)) == ()


def test_fewer_products_in_the_precision_asked_for_is_worse():
    change = only(diff(INT8, changed(products={"int8": 30, "bf16": 6})))
    assert change.worse
    assert change.sentence == (
        "it runs 30 of 36 matrix products in int8 and 6 in bf16, and ran 31 of 36 matrix products in int8 and 5 in bf16"
    )
    assert not only(diff(changed(products={"int8": 30, "bf16": 6}), INT8)).worse


def test_a_larger_model_with_the_same_share_is_not_worse():
    assert not only(diff(INT8, changed(products={"int8": 62, "bf16": 10}))).worse


def test_what_falls_back_further_is_worse_though_nothing_ran_in_the_precision_asked_for():
    before, after = (changed(asked="fp16", products={kind: 36}) for kind in ("bf16", "fp32"))
    assert only(diff(before, after)).worse
    assert not only(diff(after, before)).worse


def test_a_lost_fusion_is_worse():
    change = only(diff(INT8, changed(attention={"found": 6, "fused": 5})))
    assert change == Change(
        "attention", INT8["attention"], {"found": 6, "fused": 5}, "5 of 6 attentions are fused, and 6 of 6 were", True
    )
    assert only(diff(INT8, changed(attention={"found": 0, "fused": 0}))).worse
    assert not only(diff(changed(attention={"found": 6, "fused": 5}), INT8)).worse


def test_another_device_is_worse_and_a_provider_of_the_same_device_is_not():
    assert only(diff(changed(device="CUDAExecutionProvider"), changed(device="CPUExecutionProvider"))).worse
    assert diff(changed(device="CPUExecutionProvider"), INT8) == ()


def test_a_silent_fallback_shows_in_the_effective_precision():
    change = only(diff(INT8, changed(effective="fp32")))
    assert (change.what, change.before, change.after, change.worse) == ("effective", "bf16", "fp32", True)
    assert not only(diff(changed(effective="fp32"), INT8)).worse


def test_the_effective_precision_is_read_from_a_manifest_too():
    table = {"engine": "openvino", "precision": "f32", "threads": 2}
    assert only(diff(INT8, changed(effective=table))).after == "fp32"
    assert diff(INT8, changed(effective=table | {"precision": "as stored in the file"})) == ()


def test_asking_for_a_wider_precision_is_worse():
    changes = {c.what: c for c in diff(INT8, changed(asked="fp32", products={"fp32": 36}))}
    assert changes["asked"].worse
    assert changes["products"].worse
    back = {c.what: c for c in diff(changed(asked="fp32", products={"fp32": 36}), INT8)}
    assert not back["asked"].worse
    assert not back["products"].worse


def test_static_and_dynamic_int8_are_two_precisions_of_one_width():
    change = only(diff(INT8, changed(asked="int8-dynamic")))
    assert (change.before, change.after, change.worse) == ("int8", "int8-dynamic", False)


def test_a_new_engine_version_is_neutral():
    change = only(diff(INT8, changed(engine="openvino 2027.0.0")))
    assert change.sentence == "the engine is openvino 2027.0.0, and was openvino 2026.4.1"
    assert not change.worse


def test_an_operator_that_moved_to_fp32_is_worse_and_helpers_that_come_and_go_are_not():
    operations = INT8["operations"] | {"MVN": {"bf16": 1, "fp32": 12}, "Reorder": {"fp32": 2}}
    worse, neutral = diff(INT8, changed(operations=operations))
    assert (worse.what, worse.worse) == ("operations.MVN", True)
    assert worse.sentence == "MVN runs 1 in bf16 and 12 in fp32, and ran 13 in bf16"
    assert (neutral.what, neutral.worse) == ("operations", False)
    assert "Reorder none → 2 in fp32" in neutral.sentence


def test_weights_cast_at_every_call_are_worse():
    assert only(diff(changed(casts_folded=True), changed(casts_folded=False))).worse


def test_what_is_worse_comes_first():
    after = changed(engine="openvino 2027.0.0", attention={"found": 6, "fused": 0})
    assert [change.what for change in diff(INT8, after)] == ["attention", "engine"]
