"""Hostile models and arrays, each inside a bundle that is whole otherwise; see `hostile`."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from tests.runtime.hostile_base import (
    MODEL,
    case,
    edited,
    seal,
)

# Models


def model(nodes: list[Any], constants: dict[str, np.ndarray] | None = None, **options: Any) -> bytes:
    """An ONNX file of these nodes; its output is ``y``."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("evil", 1), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **options).SerializeToString()


def node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(operator, inputs, outputs, **attributes)


def with_model(root: Path, data: bytes) -> Path:
    (root / MODEL).write_bytes(data)
    return seal(root)


@case("would need more than 64 MiB for what Range makes")
def range_of_17_gb(root: Path) -> Path:
    numbers = {"a": np.array(0, np.int64), "b": np.array(2**31, np.int64), "c": np.array(1, np.int64)}
    return with_model(root, model([node("Range", ["a", "b", "c"], ["y"])], numbers))


@case("for what ConstantOfShape makes")
def constant_of_a_worked_out_shape(root: Path) -> Path:
    nodes = [node("Mul", ["a", "a"], ["s"]), node("Concat", ["s", "s"], ["t"], axis=0)]
    nodes.append(node("ConstantOfShape", ["t"], ["y"]))
    return with_model(root, model(nodes, {"a": np.array([60_000], np.int64)}))


@case("for what Add makes")
def outer_sum(root: Path) -> Path:
    sides = {"a": np.zeros((60_000, 1), np.float32), "b": np.zeros((1, 60_000), np.float32)}
    return with_model(root, model([node("Add", ["a", "b"], ["y"])], sides))


@case("hangs on constants that cannot be followed")
def size_out_of_a_sine(root: Path) -> Path:
    nodes = [node("Sin", ["a"], ["f"]), node("Cast", ["f"], ["s"], to=7), node("ConstantOfShape", ["s"], ["y"])]
    return with_model(root, model(nodes, {"a": np.array([1.0], np.float32)}))


@case("without that many values")
def constant_without_its_values(root: Path) -> Path:
    data = model([node("Add", ["x", "a"], ["y"])], {"a": np.zeros(3, np.float32)})
    return with_model(root, _reshaped(data, 2**40))


def _reshaped(data: bytes, size: int) -> bytes:
    from onnx import ModelProto

    proto = ModelProto.FromString(data)
    proto.graph.initializer[0].dims[:] = [size]
    return proto.SerializeToString()


def external(location: str, **more: str) -> bytes:
    from onnx import ModelProto, TensorProto

    proto = ModelProto.FromString(model([node("Add", ["x", "a"], ["y"])], {"a": np.zeros(3, np.float32)}))
    constant = proto.graph.initializer[0]
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        constant.external_data.add(key=key, value=value)
    return proto.SerializeToString()


case("outside the bundle, in '../../../etc/passwd'", "external data: ../")(
    lambda root: with_model(root, external("../../../etc/passwd"))
)
case("outside the bundle, in '/etc/passwd'", "external data: absolute")(
    lambda root: with_model(root, external("/etc/passwd"))
)
case("which the manifest does not list", "external data: unlisted")(
    lambda root: with_model(root, external("weights.bin"))
)
case("behind the end of", "external data: behind the end")(
    lambda root: with_model(root, external("fp32.onnx", offset="100", length="1000000"))
)


@case("operator domain 'evil'")
def unknown_domain(root: Path) -> Path:
    return with_model(root, model([node("Run", ["x"], ["y"], domain="evil")]))


@case("'EPContext' of 'com.microsoft'")
def compiled_blob(root: Path) -> Path:
    return with_model(root, model([node("EPContext", ["x"], ["y"], domain="com.microsoft")]))


@case("holds 40 model-local functions")
def nested_functions(root: Path) -> Path:
    """Each function calls the one before it twice: 2**40 operations once they are inlined."""
    from onnx import helper

    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("evil", 1)]
    functions = []
    for index in range(40):
        inner = {"domain": "evil"} if index else {}
        name = f"f{index - 1}" if index else "Identity"
        nodes = [node(name, ["a"], ["b"], **inner), node(name, ["b"], ["c"], **inner)]
        functions.append(helper.make_function("evil", f"f{index}", ["a"], ["c"], nodes, opsets))
    return with_model(root, model([node("f39", ["x"], ["y"], domain="evil")], functions=functions))


@case(r"has control flow \(If\)")
def control_flow(root: Path) -> Path:
    from onnx import TensorProto, helper

    inner = helper.make_graph(
        [node("Identity", ["x"], ["z"])], "in", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)]
    )
    nodes = [node("If", ["a"], ["y"], then_branch=inner, else_branch=inner)]
    return with_model(root, model(nodes, {"a": np.array(True)}))


@case("before it is made")
def a_circle(root: Path) -> Path:
    return with_model(root, model([node("Add", ["x", "b"], ["a"]), node("Add", ["x", "a"], ["b"])]))


@case("holds two graphs")
def two_graphs(root: Path) -> Path:
    data = model([node("Identity", ["x"], ["y"])])
    return with_model(root, data + data)


case("is no ONNX", "a model that is no ONNX")(lambda root: with_model(root, b"\x80\x04\x95 a pickle" * 9))
case("more parts than any encoder has", "a model of a million parts")(
    lambda root: with_model(root, b"\x08\x01" * 1_000_000)
)


def openvino_model(root: Path, text: str) -> Path:
    (root / "models" / "x.xml").write_text(text)
    (root / "models" / "x.bin").write_bytes(b"1234")

    def change(data: dict[str, Any]) -> None:
        variant = next(v for v in data["variants"] if v["target"] == "openvino")
        variant["path"] = "models/x.xml"
        data["default"] = variant["name"]

    edited(change)(root)
    return seal(root)


_LAYER = '<net name="a" version="11"><layers><layer id="0" name="a" type="{}" version="{}">{}</layer></layers></net>'
for _name, (_text, _reason) in {
    "entities": ('<!DOCTYPE a [<!ENTITY b "c">]><net>&b;</net>', "declares a document type"),
    "an operation set of others": (_LAYER.format("Run", "extension", ""), "of the operation set 'extension'"),
    "control flow": (_LAYER.format("Loop", "opset5", "<body/>"), "has control flow"),
    "a constant behind the end": (
        _LAYER.format("Const", "opset1", '<data element_type="f32" shape="9" offset="0" size="36"/>'),
        "behind the end of its .bin",
    ),
    "a constant without its values": (
        _LAYER.format("Const", "opset1", '<data element_type="f32" shape="4000000000" offset="0" size="4"/>'),
        "without that many values",
    ),
    "no XML": ("PK\3\4", "is no OpenVINO model"),
}.items():
    case(_reason, f"OpenVINO: {_name}")(lambda root, text=_text: openvino_model(root, text))


# Arrays of the self-test


def with_arrays(root: Path, data: bytes) -> Path:
    (root / "selftest" / "inputs.npz").write_bytes(data)
    edited(lambda found: found["selftest"].update(inputs="selftest/inputs.npz"))(root)
    return seal(root)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


class Pickled:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("/tmp/deploykit-was-unpickled",))


@case("numpy would have to unpickle it")
def pickled_npz(root: Path) -> Path:
    return with_arrays(root, npz(a=np.array([Pickled()], object)))


@case("is compressed")
def npz_bomb(root: Path) -> Path:
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(30_000_000, np.uint8))
    return with_arrays(root, file.getvalue())


@case("says that its shape is")
def npy_of_terabytes(root: Path) -> Path:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**40, 4)})
    (root / "selftest" / "reference.npy").write_bytes(file.getvalue() + bytes(64))
    return seal(root)
