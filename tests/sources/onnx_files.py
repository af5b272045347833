"""ONNX files as other exporters write them, made on the spot, and what they give by themselves."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from deploykit.graph.export import ExportOptions, export, onnxruntime_runner
from deploykit.sources import Options, open_source

F, I32, I64, H, D = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.DOUBLE
RNG = np.random.default_rng(0)


def tensor(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(dtype), name)


def write(path, nodes, inputs, outputs, constants=(), opset=17, **options):
    """A model from (operator, inputs, outputs, attributes) and (name, type, shape)."""
    made = [helper.make_node(op, given, got, **attributes) for op, given, got, attributes in nodes]
    ports = [[helper.make_tensor_value_info(*port) for port in some] for some in (inputs, outputs)]
    graph = helper.make_graph(made, "graph", *ports, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path, **options)
    return str(path)


def given(path, feeds, output, rows=True):
    """What the file gives, for each row of the feeds alone."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if not rows:
        return session.run([output], feeds)[0]
    count = len(next(iter(feeds.values())))
    return np.concatenate([session.run([output], {k: v[i : i + 1] for k, v in feeds.items()})[0] for i in range(count)])


def exported(spec, tmp_path, feeds, **options):
    """The source, and what the exported model gives for the feeds."""
    source = open_source(spec, Options(**options))
    found, _ = export(source, ExportOptions(), tmp_path)
    with onnxruntime_runner(found.model, source.card) as run:
        return source, found, run(feeds)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)
