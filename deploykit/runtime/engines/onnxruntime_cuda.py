"""ONNX Runtime on an NVIDIA GPU, through its CUDA provider; every product is shown to run there.

ONNX Runtime leaves to the CPU what a provider does not take, one operation at a time, and says nothing. So the session
is asked where each operation went: a matrix product, convolution or attention that is not on the GPU is an error.
Arithmetic on shapes is the CPU's work by ONNX Runtime's own choice. TF32 is off: fp32 means fp32.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.runtime.engines import EngineOptions
from deploykit.runtime.engines.onnxruntime import OnnxRuntimeEngine, Provider, open_on
from deploykit.runtime.errors import BundleError, MissingError
from deploykit.runtime.install import pip_install
from deploykit.runtime.manifest import Card

if TYPE_CHECKING:
    import onnxruntime

NAME = "CUDAExecutionProvider"
#: The oldest onnxruntime that tells where each operation runs.
LOWEST = "1.24.1"
#: The operations in which an encoder spends its time.
PRODUCTS = frozenset(
    {"Attention", "Conv", "ConvTranspose", "FusedConv", "FusedMatMul", "Gemm", "MatMul", "MultiHeadAttention"}
)
_RECORD = {"session.record_ep_graph_assignment_info": "1"}
_OPTIONS = {"use_tf32": "0"}
# Copies of one batch run beside the kernels of the other.
_LANES = 2


def open_engine(path: Path, card: Card, settings: Mapping[str, Any], options: EngineOptions) -> OnnxRuntimeEngine:
    """Load the ``.onnx`` at ``path`` on the first GPU.

    `MissingError` where the installed onnxruntime has no CUDA provider, its libraries cannot be loaded, or a product
    would run on the CPU; `BundleError` when the file cannot be loaded, or for any setting: it has none.
    """
    import onnxruntime

    if settings:
        raise BundleError(f"onnxruntime-cuda has no setting '{min(settings)}'", hint="build the bundle again")
    check_package(onnxruntime)
    with contextlib.redirect_stdout(sys.stderr):  # it prints which libraries it did not find
        onnxruntime.preload_dlls()
    provider = Provider(NAME, _OPTIONS, _RECORD, _LANES, inspect)
    # The CPU only works out shapes, for which more threads are of no use.
    return open_on(provider, path, card, settings, 1)


def check_package(onnxruntime: Any) -> None:
    """`MissingError` unless the installed onnxruntime has the CUDA provider and tells where operations run."""
    available = onnxruntime.get_available_providers()
    if NAME not in available:
        raise MissingError(
            f"the installed onnxruntime {onnxruntime.__version__} has no {NAME}, only {', '.join(available)}",
            hint=f"pip uninstall onnxruntime, then {pip_install('ort-gpu')}: both packages own the same import name",
        )
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        raise MissingError(
            f"onnxruntime {onnxruntime.__version__} does not tell where its operations run",
            hint=pip_install("ort-gpu"),
        )


def inspect(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    """``operations`` by the provider that they were given to; `MissingError` when a product is not on the GPU."""
    placed = placements(session)
    require_products(placed, NAME, path.name)
    return {"operations": {provider: sum(counts.values()) for provider, counts in placed.items()}}


def placements(session: onnxruntime.InferenceSession) -> dict[str, Counter[str]]:
    """{provider: {operator: how many}} of a session that was told to record it."""
    placed: dict[str, Counter[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        placed.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return placed


def require_products(placed: Mapping[str, Mapping[str, int]], wanted: str, name: str) -> None:
    """`MissingError` unless the provider ``wanted`` runs something, and no product runs elsewhere."""
    elsewhere = {
        f"{op} x{count} on {provider}": count
        for provider, counts in sorted(placed.items())
        for op, count in sorted(counts.items())
        if provider != wanted and op in PRODUCTS
    }
    if elsewhere or not placed.get(wanted):
        said = ", ".join(elsewhere) or "no operation runs there"
        raise MissingError(
            f"'{name}' would not run on {wanted}: {said}",
            hint="load another variant, or export with another precision; nothing is run on the CPU unasked",
        )
