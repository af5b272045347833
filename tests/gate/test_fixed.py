"""Rows without statistics, from facts that are made up."""

import pytest

from deploykit.budget import Budget
from deploykit.gate import fixed
from deploykit.gate.sides import Facts

MIB = 2**20


class Side:
    label = "the candidate new.bundle@v"


def facts(precision="int8", device="CPU", version="1", casts=True, fused=6, products=None, operations=None):
    audit = {
        "engine": "engine 1",
        "device": device,
        "asked": precision,
        "effective": precision,
        "products": products or {"int8": 31, "fp32": 5},
        "operations": operations or {"Add": {"fp32": 9}},
        "attention": {"found": 6, "fused": fused},
        "casts_folded": casts,
    }
    return Facts("v", precision, audit, {"id": "a"}, {"engine": version})


def row(candidate, baseline=None):
    return fixed.audit_row(Side(), {"candidate": candidate, "baseline": baseline or facts()})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"products": {"int8": 20, "fp32": 16}}, "20 of 36 matrix products in int8 and 16 in fp32"),
        ({"fused": 0}, "0 of 6 attentions are fused"),
        ({"device": "GPU"}, "it runs on GPU, and ran on CPU"),
        ({"products": {"fp32": 36}}, "none in int8"),
    ],
)
def test_each_fallback_fails_alone(changed, says):
    found = row(facts(**changed))
    assert found.status == "FAIL"
    assert says in found.sentence
    assert "no noise" in found.sentence
    assert found.look


def test_what_costs_little_is_told_and_left_to_the_clock():
    for changed in ({"casts": False}, {"operations": {"Add": {"fp32": 12}}}, {"operations": {"Add": {"fp64": 9}}}):
        found = row(facts(**changed))
        assert found.status == "PASS"
        assert "nothing that fails alone" in found.sentence


def test_a_step_up_passes():
    assert row(facts(products={"int8": 36}), facts(fused=3)).status == "PASS"


def test_where_to_look_is_the_software_or_the_variant_or_the_build():
    lost = {"products": {"fp32": 36}}
    assert "engine 1 → 2" in row(facts(version="2", **lost)).look
    assert "name variants that belong together" in row(facts("fp32", **lost)).look
    assert "cannot fuse" in row(facts(**lost)).look


def test_fp16_on_a_cpu_is_a_way_to_store():
    stored = facts("fp16", products={"fp32": 36})
    assert row(stored, stored).status == "PASS"
    on_gpu = facts("fp16", device="GPU", products={"fp32": 36})
    assert row(on_gpu, on_gpu).status == "FAIL"


@pytest.mark.parametrize(
    ("limit", "ours", "theirs", "status"),
    [
        ("size<=+2%", 103 * MIB, 100 * MIB, "FAIL"),
        ("size<=+2%", 101 * MIB, 100 * MIB, "PASS"),
        ("size<=+2%", 2 * MIB, MIB, "PASS"),  # twice as large, and still only one MiB
        ("size<=+2%", 2 * MIB + 1, MIB, "FAIL"),
        ("size<=-50%", 60 * MIB, 100 * MIB, "FAIL"),
        ("size<=1KB", 1001, 10**9, "FAIL"),
        ("size<=1KB", 1000, 1, "PASS"),
    ],
)
def test_bytes(limit, ours, theirs, status):
    (parsed,) = Budget.parse(limit).limits
    found = fixed.bytes_row("size", "the candidate", parsed, (ours, theirs), "exact", "look")
    assert found.status == status
    assert found.look == ("look" if status == "FAIL" else "")


def test_a_precision_of_another_package_is_held_to_what_it_was_compiled_as():
    ours = facts()
    ternary = Facts("v", "ternary", ours.audit, ours.hardware, ours.software)
    assert fixed.lost(ternary) == []
    lost = facts(products={"fp32": 36})
    assert fixed.lost(Facts("v", "ternary", lost.audit, lost.hardware, lost.software))
