"""The peer of the coverage sweep: the plain torch exporter, judged by deploykit's proof on both engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DeploykitError
from deploykit.graph import prove
from deploykit.graph.export import reference, tracing_inputs
from deploykit.precisions.fp32 import TOLERANCE
from deploykit.sources import Source


def export(source: Source, path: Path) -> None:
    """``torch.onnx.export(dynamo=True)`` with the batch and the source's own axes dynamic, and nothing else set."""
    import torch

    assert source.module is not None
    specs = source.card.inputs
    torch.onnx.export(
        source.module,
        (),
        str(path),
        kwargs=dict(tracing_inputs(source)),
        dynamo=True,
        dynamic_shapes={
            spec.name: {i: axis for i, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in specs
        },
        input_names=[spec.name for spec in specs],
        output_names=[source.card.embedding.output],
        verbose=False,
    )


def whole(answer: np.ndarray, feeds: prove.Feeds) -> np.ndarray:
    """All of an answer."""
    return answer


def judge(source: Source, path: Path) -> dict[str, dict[str, Any]]:
    """The proof of every case on each engine."""
    return judged(prove.make_cases(source, reference(source)), path, "the plain export")


def judged(
    cases: Sequence[prove.Case], path: Path, what: str, seen: Callable[[np.ndarray, prove.Feeds], np.ndarray] = whole
) -> dict[str, dict[str, Any]]:
    """For each engine: proven, wrong (with how), or the engine's refusal. ``seen`` is what of an answer counts."""
    results = {}
    for engine, opened in (("onnxruntime-fp32", _onnxruntime), ("openvino-fp32", _openvino)):
        try:
            run = opened(path)
            prove.prove(cases, lambda feeds, run=run: seen(run(feeds), feeds), TOLERANCE, what)
            results[engine] = {"result": "proven"}
        except DeploykitError as error:
            results[engine] = {"result": "wrong", "why": error.message}
        except Exception as error:
            results[engine] = {"result": "refused", "error": type(error).__name__, "why": str(error)[:300]}
    return results


def _onnxruntime(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda feeds: np.asarray(session.run(None, dict(feeds))[0])


def _openvino(path: Path) -> Any:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    return lambda feeds: np.asarray(compiled(dict(feeds))[0])
