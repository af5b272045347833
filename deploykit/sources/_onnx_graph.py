"""Reading and extending ONNX graphs: inputs, the output that is the embedding, and a pooling head behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import MissingError, SourceError
from deploykit.graph.weights import ONE_FILE, constant_bytes
from deploykit.runtime.install import pip_install
from deploykit.runtime.manifest import TensorSpec
from deploykit.sources import Options
from deploykit.sources._checkpoint import first_line
from deploykit.sources._text import scratch_folder

if TYPE_CHECKING:
    import onnx

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]

_EMBEDDINGS = ("sentence_embedding", "image_embeds", "text_embeds", "embedding", "embeddings", "pooler_output")
_TOKENS = ("token_embeddings", "last_hidden_state")
_MASK = "attention_mask"
_OLDEST_OPSET, _FIRST_OF_DYNAMO = 13, 18


def load(path: Path) -> onnx.ModelProto:
    """The checked model; `SourceError` with the checker's reason when it is damaged or incomplete."""
    try:
        import onnx
    except ImportError as error:
        raise MissingError("onnx is not installed", hint=pip_install("export")) from error
    try:
        onnx.checker.check_model(str(path))
        return onnx.load(str(path))
    except Exception as error:
        hint = "the file or a weight file beside it is missing or cut off: fetch or export it again"
        raise SourceError(f"{path} is not a valid ONNX model: {first_line(error)}", hint=hint) from error


def inputs_of(model: onnx.ModelProto, name: str) -> tuple[TensorSpec, ...]:
    """The graph's inputs with the axis names that deploykit uses; `SourceError` when the batch is fixed."""
    from onnx.helper import tensor_dtype_to_np_dtype

    constants = {tensor.name for tensor in model.graph.initializer}
    axes: dict[str, str] = {}
    specs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        dims = value.type.tensor_type.shape.dim
        if not dims or dims[0].HasField("dim_value"):
            fixed = dims[0].dim_value if dims else "nothing"
            hint = "export it again with a dynamic batch axis"
            raise SourceError(f"the first axis of '{value.name}' in {name} is fixed at {fixed}", hint=hint)
        shape = tuple(_axis(i, dim, len(dims), axes) for i, dim in enumerate(dims))
        dtype = tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        specs.append(TensorSpec(value.name, str(np.dtype(dtype)), shape))
    return tuple(specs)


def _axis(position: int, dim: Any, rank: int, axes: dict[str, str]) -> int | str:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    if position == 0:
        return "batch"
    usual = {(1, 2): "length", (1, 3): "length", (2, 4): "height", (3, 4): "width"}.get(
        (position, rank), f"axis{position}"
    )
    symbol = dim.dim_param or usual
    return axes.setdefault(symbol, usual if usual not in axes.values() else f"{usual}_{len(axes)}")


def output_of(model: onnx.ModelProto, options: Options, name: str) -> str:
    """The output to embed with: token vectors when a pooling is asked for, else the embedding."""
    rank = {value.name: len(value.type.tensor_type.shape.dim) for value in model.graph.output}
    pooled = options.pooling not in (None, "none", "pooler")
    wanted, order = (3, _TOKENS) if pooled else (2, _EMBEDDINGS)
    fitting = [output for output in rank if rank[output] == wanted]
    chosen = next((output for output in order if output in fitting), fitting[0] if len(fitting) == 1 else None)
    if chosen is not None:
        return chosen
    listed = ", ".join(f"{output} (rank {count})" for output, count in rank.items())
    if not pooled and 3 in rank.values():
        hint = "its token vectors need a pooling: mean, cls, last, max, mean_sqrt_len or weighted_mean"
    else:
        hint = f"one output of rank {wanted} is needed, named {' or '.join(order)} where there are several"
    raise SourceError(f"{name} has no output that is the embedding: {listed}", hint=hint)


def extend(model: onnx.ModelProto, output: str, new_name: str, options: Options) -> onnx.ModelProto:
    """A copy whose only output is the embedding under a new name, behind the pooling and stages asked for."""
    import onnx
    from onnx import compose, helper

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


def _head(model: onnx.ModelProto, options: Options) -> onnx.ModelProto | None:
    """Pooling, truncation and normalisation as an ONNX model of the same opset; None when there is nothing to add."""
    import torch

    from deploykit.sources._encoders import Head, stages

    pooled = options.pooling not in (None, "none", "pooler")
    extra = stages(options, bool(options.normalize))
    if not pooled and not extra:
        return None
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
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


def runner(path: Path, output: str, name: str) -> Run:
    """Feeds to the embedding on onnxruntime's CPU; `SourceError` with its message when the model cannot run."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError("onnxruntime is not installed", hint=pip_install("ort")) from error
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
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
