"""The line that says what int8 gains, and why it gains nothing."""

import dataclasses

import bench_result
import example_manifest
import pytest

from deploykit import report
from deploykit.report import bench_model, bench_terminal, html, markdown, model, terminal
from deploykit.report.int8_gain import Timed, sentences

ZEN3 = ("avx", "avx2", "fma")
VNNI = (*ZEN3, "avx512_vnni")


def timed(precision, ms, workload="batch", target="openvino"):
    return Timed(f"{target}-{precision}", target, precision, workload, (0.98 * ms, ms, 1.04 * ms))


def test_without_int8_instructions_a_slower_int8_says_why():
    (said,) = sentences([timed("fp32", 10.0), timed("int8", 12.5)], ZEN3)
    assert said.startswith("openvino-int8 runs at 0.80x [0.75, 0.85] (batch) the speed of openvino-fp32: ")
    assert "this CPU has no instructions for int8 products (VNNI)" in said


def test_a_gain_is_told_without_an_excuse():
    assert sentences([timed("fp32", 10.0), timed("int8", 4.0)], VNNI) == (
        "openvino-int8 runs at 2.50x [2.36, 2.65] (batch) the speed of openvino-fp32",
    )


@pytest.mark.parametrize(("features", "said"), [(VNNI, "saves size alone"), ((), "openvino-fp32")])
def test_no_gain_is_not_blamed_on_instructions_that_are_there_or_unknown(features, said):
    (sentence,) = sentences([timed("fp32", 10.0), timed("int8", 10.0)], features)
    assert "VNNI" not in sentence
    assert sentence.endswith(said)


def test_each_int8_variant_is_held_against_its_own_engine():
    rows = [timed("fp32", 10.0), timed("int8-dynamic", 5.0, target="onnxruntime"), timed("bf16", 5.0)]
    assert sentences(rows, VNNI) == ()
    rows.append(timed("fp32", 20.0, target="onnxruntime"))
    assert sentences(rows, VNNI)[0].startswith("onnxruntime-int8-dynamic runs at 4.00x")


def test_many_points_become_a_range():
    rows = [timed(p, ms * i, str(i)) for i in (1, 2, 3) for p, ms in (("fp32", 10.0), ("int8", 4.0 * i))]
    assert sentences(rows, VNNI) == ("openvino-int8 runs at 0.83x to 2.50x the speed of openvino-fp32 (3 points): "
        "int8 gains little or nothing for this model here, and saves size alone",)  # fmt: skip


def test_inspect_and_the_pages_show_it():
    made = example_manifest.manifest()
    variants = [example_manifest.variant(f"openvino-{p}", f"models/{p}.xml", 0.99, (ms, 30 * ms)) for p, ms in
                (("fp32", 10.0), ("int8", 12.5))]  # fmt: skip
    machine = {"machine": {"id": "3f9c21ab", "features": list(ZEN3)}}
    made = dataclasses.replace(made, variants=tuple(variants), provenance={**made.provenance, **machine})
    said = model.from_manifest(made, "m.bundle").int8_gains
    assert len(said) == 1
    shown = model.from_manifest(made, "m.bundle")
    for page in (terminal.render(shown), html.render(shown), report.text(made, "m.bundle", 100)):
        assert "this CPU has no instructions for int8 products (VNNI)" in " ".join(page.split())
    assert "no instructions for int8 products" in markdown.render(shown)


def test_a_bench_shows_it():
    data = bench_result.made(("openvino-fp32", "openvino-int8"))
    for row in data["subjects"]:
        row["precision"] = row["name"].partition("-")[2]
    bench = bench_model.from_result(data)
    (said,) = bench.int8_gains
    assert said.startswith("openvino-int8 runs at 1.")
    assert "the speed of openvino-fp32 (4 points)" in said
    assert said in " ".join(bench_terminal.render(bench).split())
