"""Running ONNX graphs, and extending them: a pooling head behind the output that is the embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import MissingError, SourceError
from deploykit.graph.opset import opset_of, raised
from deploykit.graph.weights import ONE_FILE, constant_bytes
from deploykit.runtime.install import pip_install
from deploykit.sources import Options
from deploykit.sources._checkpoint import first_line
from deploykit.sources._text import scratch_folder

if TYPE_CHECKING:
    import onnx

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]

EMBEDDINGS = ("sentence_embedding", "image_embeds", "text_embeds", "embedding", "embeddings", "pooler_output")
TOKENS = ("token_embeddings", "last_hidden_state")
_MASK = "attention_mask"
_OLDEST_OPSET, _OPSET_OF_HEADS, _FIRST_OF_DYNAMO = 13, 17, 18


def extend(model: onnx.ModelProto, output: str, new_name: str, options: Options) -> onnx.ModelProto:
    """A copy whose only output is the embedding under a new name, behind the pooling and stages asked for."""
    import onnx
    from onnx import compose, helper

    if _is_extended(options) and opset_of(model) < _OLDEST_OPSET:
        model, _ = raised(model, _OPSET_OF_HEADS)
    body = onnx.ModelProto()
    body.CopyFrom(model)
    kept = next(value for value in model.graph.output if value.name == output)
    del body.graph.output[:]
    body.graph.output.append(kept)
    head = _head(model, options)
    if head is None:
        if output != new_name:
            body.graph.node.append(helper.make_node("Identity", [output], [new_name]))
            body.graph.output[0].name = new_name
        return body
    pairs = [(output, "head_tokens")]
    if len(head.graph.input) > 1:
        # Only outputs can be joined to the head, and the mask is an input: an identity makes it both.
        body.graph.node.append(helper.make_node("Identity", [_MASK], ["head_given_mask"]))
        given = body.graph.output.add()
        given.CopyFrom(next(value for value in body.graph.input if value.name == _MASK))
        given.name = "head_given_mask"
        pairs.append(("head_given_mask", "head_mask"))
    head.ir_version = body.ir_version
    joined = compose.merge_models(body, compose.add_prefix(head, "head_"), io_map=pairs)
    joined.graph.node.append(helper.make_node("Identity", ["head_pooled"], [new_name]))
    joined.graph.output[0].name = new_name
    return joined


def _is_extended(options: Options) -> bool:
    return options.pooling not in (None, "none", "pooler") or bool(options.dim or options.normalize)


def _head(model: onnx.ModelProto, options: Options) -> onnx.ModelProto | None:
    """Pooling, truncation and normalisation as an ONNX model of the same opset; None when there is nothing to add."""
    import torch

    from deploykit.sources._encoders import Head, stages

    pooled = options.pooling not in (None, "none", "pooler")
    extra = stages(options, bool(options.normalize))
    if not pooled and not extra:
        return None
    opset = opset_of(model)
    if opset < _OLDEST_OPSET:
        hint = "export it again with opset 20, or leave pooling, dim and normalize out"
        raise SourceError(f"nothing can be appended to a model of opset {opset}", hint=hint)
    head = Head([str(options.pooling)] if pooled else [], extra).eval()
    masked = pooled and any(value.name == _MASK for value in model.graph.input)
    tokens = torch.randn(3, 5, 8) if pooled else torch.randn(3, 8)
    example = (tokens, torch.ones(3, 5, dtype=torch.int64) if masked else None)
    return _export_head(head, example, opset)


def _export_head(head: Any, example: tuple[Any, Any], opset: int) -> onnx.ModelProto:
    import warnings

    import onnx
    import torch

    tokens, mask = example
    axes = {0: "batch", 1: "length"} if tokens.ndim == 3 else {0: "batch"}
    shapes = {"tokens": {**axes, tokens.ndim - 1: "width"}, "mask": axes}
    path = scratch_folder() / "head.onnx"
    way: dict[str, Any] = {"dynamo": False, "dynamic_axes": shapes}
    if opset >= _FIRST_OF_DYNAMO:
        shapes = shapes if mask is not None else {"tokens": shapes["tokens"]}
        way = {"dynamo": True, "dynamic_shapes": shapes, "verbose": False, "external_data": False}
    given = (tokens,) if mask is None else (tokens, mask)
    names = ["tokens", "mask"][: len(given)]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            head, given, str(path), opset_version=opset, input_names=names, output_names=["pooled"], **way
        )
    return onnx.load(path)


def save(model: onnx.ModelProto) -> Path:
    """Write the model to a folder that lives as long as this process."""
    import onnx

    path = scratch_folder() / "model.onnx"
    large = constant_bytes(model) > ONE_FILE
    onnx.save(model, path, save_as_external_data=large, location="model.onnx.data" if large else None)
    return path


def runner(path: Path, output: str, name: str, *, as_it_is: bool = False) -> Run:
    """Feeds to one output on onnxruntime's CPU, ``as_it_is`` without its rewriting of graphs.

    Raises `SourceError` with its message when the model cannot run.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError("onnxruntime is not installed", hint=pip_install("ort")) from error
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    if as_it_is:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    hint = "an operator of it has no kernel or fails: export the model anew with standard operators"
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise SourceError(f"onnxruntime cannot load {name}: {first_line(error)}", hint=hint) from error

    def run(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        try:
            result: np.ndarray = session.run([output], dict(feeds))[0]
        except Exception as error:
            raise SourceError(f"{name} fails when it runs: {first_line(error)}", hint=hint) from error
        return result

    return run


def succeeds(run: Callable[[], Any]) -> bool:
    """Whether a run goes through; only what `runner` raises counts as a refusal."""
    try:
        run()
    except SourceError:
        return False
    return True
