"""Kinds of CPU, for tests of what depends on them.

A test that asks what deploykit decides on another CPU puts its features in the place of this machine's. A test of
numerics
with exact 8-bit sums takes the form `EXACT_HERE`; values that differ by kind of CPU are kept per kind.
"""

from deploykit.precisions import adds_int8_exactly
from deploykit.runtime import hardware

AVX2 = frozenset({"avx", "avx2", "fma"})
VNNI = AVX2 | {"avx512f", "avx512_vnni"}
BF16 = VNNI | {"avx512_bf16"}

HAS_BF16 = not hardware.cpu_features().isdisjoint({"amx_bf16", "avx512_bf16"})
#: Whether int8 kernels of this CPU add products in 32 bits; others saturate where a weight has all of its 8 bits.
ADDS_EXACTLY = adds_int8_exactly()
#: ``cpu`` of the int8 precisions that gives exact sums here: all 8 bits of a weight, or 7.
EXACT_HERE = "vnni" if ADDS_EXACTLY else "any"


def put(monkeypatch, features, architecture="x86_64"):
    """Let deploykit see a CPU with such features."""
    cpu = hardware.Cpu(architecture, "a CPU", frozenset(features))
    monkeypatch.setattr(hardware, "cpu", lambda *_: cpu)
