from dataclasses import replace
from types import SimpleNamespace

import pytest

from deploykit.runtime import selection
from deploykit.runtime.engines import install_hint
from deploykit.runtime.hardware import Cpu
from deploykit.runtime.install import pip_install
from deploykit.runtime.manifest import FileEntry, Variant
from deploykit.runtime.selection import Device, Report, Row, candidates, unmet

DEVICE = Device(Cpu("x86_64", "test", frozenset({"avx2", "amx_bf16"})), memory=lambda: 300 << 20)
PORTABLE = Variant("onnxruntime-fp32", "onnxruntime", "fp32", "models/fp32.onnx")


@pytest.fixture(autouse=True)
def _everything_is_installed(monkeypatch):
    monkeypatch.setattr(selection.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(selection, "version", lambda name: "2026.4.1")


def bundle(*variants, default=""):
    sizes = {v.path: FileEntry("0" * 64, 100 - i) for i, v in enumerate(variants)}
    manifest = SimpleNamespace(
        portable=True, variants=variants, default=default, files={PORTABLE.path: FileEntry("0" * 64, 500), **sizes}
    )
    return SimpleNamespace(manifest=manifest, portable=PORTABLE)


def variant(name, p50_ms=None, **requires):
    latency = {} if p50_ms is None else {"single": {"p50_ms": p50_ms}}
    return Variant(name, "openvino", "bf16", f"models/{name}.onnx", requires=requires, latency=latency)


def order(made, prefer="speed"):
    return [c.variant.name for c in candidates(made, prefer, DEVICE)]


def test_the_default_comes_first_then_the_fastest_then_the_portable_model():
    made = bundle(
        variant("slow", 9.0), variant("quick", 2.0), variant("chosen", 5.0), variant("unknown"), default="chosen"
    )
    assert order(made) == ["chosen", "quick", "slow", "onnxruntime-fp32", "unknown"]


def test_size_prefers_the_smallest():
    assert order(bundle(variant("a"), variant("b"), default="a"), "size") == ["b", "a", "onnxruntime-fp32"]


def test_the_portable_model_is_not_listed_twice():
    assert order(bundle(PORTABLE, default=PORTABLE.name)) == ["onnxruntime-fp32"]


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        ({}, ""),
        ({"architecture": ["amd64"]}, ""),
        ({"architecture": ["aarch64", "riscv64"]}, "it is for aarch64 or riscv64, this machine is x86_64"),
        ({"cpu_features": ["avx2", "amx_bf16|avx512_bf16"]}, ""),
        ({"cpu_features": ["avx2", "avx512_vnni"]}, "the CPU lacks avx512_vnni"),
        ({"cpu_features": ["sve|i8mm"]}, "the CPU lacks sve or i8mm"),
        ({"packages": {"openvino": ">=2025.0,<2027"}}, ""),
        ({"packages": {"openvino": ">=2026.5"}}, "it needs openvino>=2026.5, and 2026.4.1 is installed"),
        ({"packages": {"openvino": "==2026.4.1"}}, ""),
        ({"packages": {"openvino": "~=2026.4"}}, "is not understood"),
        ({"memory_mib": 300}, ""),
        ({"memory_mib": 300.5}, "it needs 301 MiB of memory, and 300 MiB can be had"),
        ({"memory_mib": 512}, "it needs 512 MiB of memory, and 300 MiB can be had"),
        ({"memory_mib": "much"}, "its demand 'memory_mib' 'much' is not understood"),
        ({"gpu": "sm_90"}, "it requires 'gpu', which this deploykit cannot check"),
    ],
)
def test_what_a_variant_requires_is_held_against_the_device(requires, reason):
    found = unmet(replace(PORTABLE, requires=requires), DEVICE)
    assert reason in found
    assert bool(found) == bool(reason)


def test_versions_compare_as_numbers(monkeypatch):
    monkeypatch.setattr(selection, "version", lambda name: "1.9rc1")
    assert unmet(replace(PORTABLE, requires={"packages": {"onnxruntime": ">=1.10"}}), DEVICE)
    assert not unmet(replace(PORTABLE, requires={"packages": {"onnxruntime": ">=1.9.0"}}), DEVICE)


def test_an_engine_that_is_not_installed_is_a_reason(monkeypatch):
    monkeypatch.setattr(selection.importlib.util, "find_spec", lambda name: None)
    assert unmet(PORTABLE, DEVICE) == "onnxruntime is not installed"
    assert install_hint(["onnxruntime", "openvino"]) == pip_install("ort", "openvino")


def test_the_weights_must_fit_where_nothing_is_demanded():
    assert not unmet(PORTABLE, DEVICE, 200 << 20)
    assert unmet(PORTABLE, DEVICE, 300 << 20) == "it needs 348 MiB of memory, and 300 MiB can be had"
    assert not unmet(PORTABLE, replace(DEVICE, memory=lambda: None), 300 << 20)
    made = replace(PORTABLE, requires={"memory_mib": 100})
    assert not unmet(made, DEVICE, 300 << 20)


def test_a_report_has_one_line_per_variant():
    rows = (
        Row("quick", "refused", "cosine 0.500000 is below 0.900000", 0.5, None),
        Row("right", "used", "the fastest of 2 that pass the self-test here", 0.98765432, 1.2345),
        Row("slow", "usable", "passes the self-test here", 1.0, 12.0),
    )
    report = Report("right", "the fastest of 2 that pass the self-test here", rows, {"engine": "e"}, ("remembered",))
    assert str(report).splitlines() == [
        "right: the fastest of 2 that pass the self-test here",
        "  engine e",
        "  refused  quick  cosine 0.500000               cosine 0.500000 is below 0.900000",
        "  used     right  cosine 0.987654  p50 1.23 ms  the fastest of 2 that pass the self-test here",
        "  usable   slow   cosine 1.000000  p50 12 ms    passes the self-test here",
        "  note: remembered",
    ]
    assert report.passed_over == {"quick": "cosine 0.500000 is below 0.900000"}
    assert report.behind == {"slow": "passes the self-test here"}
