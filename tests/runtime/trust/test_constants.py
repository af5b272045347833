"""What a model's constants would grow into, held against numpy doing it on small ones."""

import numpy as np
import pytest

from deploykit.runtime.errors import BundleError
from deploykit.runtime.trust import constants, onnx_graph
from tests.runtime.hostile import model, node

pytest.importorskip("onnx")


def check(nodes, given, file_bytes=0):
    data = model(nodes, given)
    constants.check("m.onnx", onnx_graph.read("m.onnx", memoryview(data)), file_bytes)


def ints(*values):
    return np.array(values, np.int64)


def grown(*size_nodes, size, **given):
    """A ConstantOfShape of ``size`` behind nodes that work the size out of ``given``."""
    check([*size_nodes, node("ConstantOfShape", [size], ["y"])], given)


LARGE = 100_000_000


def changed(data, change):
    """The model after ``change`` of its protobuf."""
    from onnx import ModelProto

    proto = ModelProto.FromString(data)
    change(proto.graph)
    return proto.SerializeToString()


def test_a_size_that_is_a_float_attribute_is_followed():
    nodes = [node("Constant", [], ["f"], value_floats=[1e8]), node("Cast", ["f"], ["s"], to=7)]
    with pytest.raises(BundleError, match="would need more"):
        grown(*nodes, size="s")


def test_an_attribute_that_is_one_number_and_many_is_refused():
    def both(graph):
        graph.node[0].attribute[0].i = 0

    data = changed(model([node("RandomNormal", [], ["y"], shape=[LARGE])]), both)
    with pytest.raises(BundleError, match="is two things at once"):
        onnx_graph.read("m.onnx", memoryview(data))


def test_of_bytes_given_twice_the_last_hold():
    data = model([node("ConstantOfShape", ["s"], ["y"])], {"s": ints(1)})
    again = b"\x4a\x08" + (LARGE).to_bytes(8, "little")  # raw_data once more, within the constant
    at = data.index(b"\x4a\x08" + (1).to_bytes(8, "little"))
    grown_by = len(again)
    whole = bytearray(data[: at + 10] + again + data[at + 10 :])
    constant = data.rindex(b"\x2a", 0, at)  # the constant's length, and the graph's
    whole[constant + 1] += grown_by
    graph = whole.index(b"\x3a")
    whole[graph + 1] += grown_by
    assert whole[graph + 1] < 128
    found = onnx_graph.read("m.onnx", memoryview(bytes(whole)))
    with pytest.raises(BundleError, match="would need more"):
        constants.check("m.onnx", found, 0)


def test_an_operation_over_constants_that_nobody_knows_is_refused():
    with pytest.raises(BundleError, match="Multinomial, whose output's size cannot be told"):
        check([node("Multinomial", ["a"], ["y"], sample_size=LARGE)], {"a": np.zeros((1, 2), np.float32)})


def test_looking_up_in_a_large_table_is_bounded_by_what_is_looked_up():
    given = {"table": np.zeros((3000, 300), np.float32), "ids": np.zeros((1, 512), np.int64)}
    check([node("Gather", ["table", "ids"], ["e"]), node("Add", ["e", "x"], ["y"])], given)


def test_the_shape_of_what_is_smaller_than_known_is_not_taken_for_its_shape():
    nodes = [node("Slice", ["a", "i", "j"], ["b"]), node("Shape", ["b"], ["s"])]
    with pytest.raises(BundleError, match="cannot be followed"):
        grown(*nodes, size="s", a=np.zeros((2000, 2), np.float32), i=ints(0), j=ints(1))


@pytest.mark.parametrize(
    ("nodes", "given"),
    [
        ([], {"s": ints(LARGE)}),
        ([node("Mul", ["a", "b"], ["s"])], {"a": ints(10_000), "b": ints(10_000)}),
        ([node("Concat", ["a", "a"], ["s"], axis=0)], {"a": ints(10_000)}),
        ([node("Cast", ["a"], ["s"], to=7)], {"a": np.array([1e8], np.float32)}),
        ([node("Gather", ["a", "i"], ["s"])], {"a": ints(1, LARGE), "i": ints(1)}),
        ([node("Unsqueeze", ["a", "i"], ["s"])], {"a": np.array(LARGE), "i": ints(0)}),
        ([node("Slice", ["a", "i", "j"], ["s"])], {"a": ints(1, LARGE), "i": ints(1), "j": ints(2)}),
        (
            [node("ReduceProd", ["a"], ["t"], keepdims=1), node("Reshape", ["t", "i"], ["s"])],
            {"a": ints(10_000, 10_000), "i": ints(-1)},
        ),
        ([node("Shape", ["a"], ["t"]), node("Mul", ["t", "b"], ["s"])], {"a": ints(*range(1000)), "b": ints(100_000)}),
    ],
)
def test_sizes_are_followed_through_the_operations_that_make_them(nodes, given):
    with pytest.raises(BundleError, match="would need more than 64 MiB for what ConstantOfShape"):
        grown(*nodes, size="s", **given)


@pytest.mark.parametrize("count", [1, 1000, 8_000_000])
def test_what_the_room_allows_passes(count):
    grown(size="s", s=ints(count))


def test_many_small_ones_add_up():
    nodes = [node("ConstantOfShape", ["s"], [f"y{i}"]) for i in range(20)]
    with pytest.raises(BundleError, match="would need more"):
        check(nodes, {"s": ints(1_000_000)})


def test_the_room_grows_with_the_file():
    nodes = [node("ConstantOfShape", ["s"], ["y"])]
    check(nodes, {"s": ints(LARGE)}, file_bytes=100_000_000)


@pytest.mark.parametrize(
    ("nodes", "given", "who"),
    [
        ([node("Tile", ["x", "r"], ["y"])], {"r": ints(LARGE)}, "Tile"),
        ([node("Expand", ["x", "r"], ["y"])], {"r": ints(10_000, 10_000)}, "Expand"),
        ([node("Pad", ["x", "r"], ["y"])], {"r": ints(0, LARGE)}, "Pad"),
        ([node("Resize", ["x", "", "", "r"], ["y"])], {"r": ints(LARGE)}, "Resize"),
        ([node("Resize", ["x", "", "r"], ["y"])], {"r": np.array([1e8], np.float32)}, "Resize"),
        ([node("OneHot", ["x", "r", "v"], ["y"])], {"r": ints(LARGE), "v": ints(0, 1)}, "OneHot"),
        ([node("HannWindow", ["r"], ["y"])], {"r": np.array(LARGE)}, "HannWindow"),
        ([node("RandomNormal", [], ["y"], shape=[LARGE])], {}, "RandomNormal"),
        ([node("MatMul", ["a", "b"], ["y"])], {"a": np.zeros((9999, 1)), "b": np.zeros((1, 9999))}, "MatMul"),
        ([node("Gemm", ["a", "b"], ["y"], transA=1)], {"a": np.zeros((1, 9999)), "b": np.zeros((1, 9999))}, "Gemm"),
        ([node("Where", ["c", "a", "b"], ["y"])],
         {"c": np.array(True), "a": np.zeros((9999, 1)), "b": np.zeros((1, 9999))}, "Where"),
    ],
)  # fmt: skip
def test_what_grows_by_constants_is_bounded_even_where_its_data_is_an_input(nodes, given, who):
    with pytest.raises(BundleError, match=f"would need more than .* what {who} makes"):
        check(nodes, given)


def test_what_grows_by_an_input_is_left_to_the_limits_of_inputs():
    check([node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["y"])], {})
    check([node("Tile", ["a", "x"], ["y"])], {"a": ints(1)})


@pytest.mark.parametrize("value", [1, 3, 100_000])
def test_a_size_that_is_one_value_many_times_is_followed(value):
    """As the older exporter writes ``expand``: a shape of ones."""
    from onnx import numpy_helper

    ones = node("ConstantOfShape", ["n"], ["s"], value=numpy_helper.from_array(ints(value)))
    nodes, given = [ones, node("Expand", ["x", "s"], ["y"])], {"n": ints(2)}
    if value**2 < LARGE:
        check(nodes, given)
    else:
        with pytest.raises(BundleError, match=r"would need more than .* what Expand makes"):
            check(nodes, given)


@pytest.mark.parametrize("step", [0, 1e-30, float("nan")])
def test_a_range_of_tiny_or_no_steps(step):
    given = {"a": np.array(0.0), "b": np.array(1.0), "c": np.array(step)}
    with pytest.raises(BundleError, match="Range"):
        check([node("Range", ["a", "b", "c"], ["y"])], given)


@pytest.mark.parametrize(("start", "limit", "step"), [(0, 10, 1), (10, 0, -3), (5, 5, 1), (0, 10, -1), (0.0, 1.0, 0.3)])
def test_a_range_counts_as_numpy_does(start, limit, step):
    arrays = [np.array(v) for v in (start, limit, step)]
    found = constants._range(arrays)
    assert found.count == len(np.arange(start, limit, step))
    np.testing.assert_allclose(found.values, np.arange(start, limit, step))


def test_weights_that_are_dequantized_and_transposed_pass():
    nodes = [
        node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=1),
        node("Transpose", ["f"], ["t"], perm=[1, 0]),
        node("MatMul", ["x", "t"], ["y"]),
    ]
    given = {"w": np.zeros((2000, 2000), np.int8), "s": np.ones(2000, np.float32), "z": np.zeros(2000, np.int8)}
    check(nodes, given, file_bytes=4_000_000)


def weight_norm(**reduce):
    """A convolution's weight as length times direction, which engines fold while they load."""
    return [
        node("Mul", ["v", "v"], ["squares"]),
        node("ReduceSum", ["squares", "axes"], ["sum"], **reduce),
        node("Sqrt", ["sum"], ["norm"]),
        node("Div", ["g", "norm"], ["scale"]),
        node("Mul", ["v", "scale"], ["w"]),
    ]


def test_the_weight_norm_of_a_wide_convolution_passes():
    v, g = np.ones((512, 48, 128), np.float32), np.ones((1, 1, 128), np.float32)
    check(weight_norm(keepdims=1), {"v": v, "g": g, "axes": ints(0, 1)}, file_bytes=v.nbytes)


def test_what_was_reduced_still_grows_by_broadcasting():
    nodes = [node("ReduceSum", ["a", "i"], ["s"], keepdims=1), node("Mul", ["s", "b"], ["y"])]
    given = {"a": np.ones((6000, 2), np.float32), "i": ints(1), "b": np.ones((1, 6000), np.float32)}
    with pytest.raises(BundleError, match="Mul makes of constants alone"):
        check(nodes, given)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [(0,), (-1,), (1, -3), (0, 1, 2)])
def test_a_reduction_has_the_shape_that_numpy_gives(keepdims, axes):
    from types import SimpleNamespace

    array = np.ones((5, 7, 3))
    reduce = SimpleNamespace(values={"keepdims": [keepdims]}, operator="ReduceSum")
    found = constants._reduced(reduce, array.shape, [constants.Known(105, array.shape), known(ints(*axes))])
    want = array.sum(axis=axes, keepdims=bool(keepdims)).shape
    assert (found.shape, found.exact, found.count) == (want, True, int(np.prod(want)))


@pytest.mark.parametrize(
    ("values", "axes"), [({}, ()), ({"noop_with_empty_axes": [1]}, (0,)), ({"axes": [0]}, (1,)), ({}, (9,))]
)
def test_a_reduction_that_cannot_be_told_is_no_larger_than_what_was_reduced(values, axes):
    from types import SimpleNamespace

    reduce = SimpleNamespace(values=values, operator="ReduceSum")
    found = constants._reduced(reduce, (5, 7), [constants.Known(35, (5, 7)), known(ints(*axes))])
    assert (found.count, found.shape, found.exact) == (35, (5, 7), False)


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 7), (0,)), ((5, 7), (-1,)), ((5, 7), (1, 3)), ((), (0,)), ((5,), (2, 0, -3))]
)
def test_an_unsqueezed_constant_has_the_shape_that_numpy_gives(shape, axes):
    from types import SimpleNamespace

    node = SimpleNamespace(values={}, operator="Unsqueeze")
    array = np.ones(shape)
    rank = len(shape) + len(axes)
    found = constants._folded(node, [known(array), known(ints(*axes))])
    distinct = len({axis % rank for axis in axes}) == len(axes)
    assert found.count == array.size
    assert found.shape == (np.expand_dims(array, axes).shape if distinct else None)


@pytest.mark.parametrize(
    ("target", "want"),
    [
        ((35,), (35,)),
        ((0, -1), (5, 7)),
        ((7, -1), (7, 5)),
        ((1, 5, 0), None),
        ((-1, -1), None),
        ((6, -1), None),
        ((-2,), None),
    ],
)
def test_a_reshaped_constant_has_the_shape_asked_for_where_that_can_be(target, want):
    from types import SimpleNamespace

    node = SimpleNamespace(values={}, operator="Reshape")
    found = constants._folded(node, [constants.Known(35, (5, 7)), known(ints(*target))])
    assert (found.count, found.shape) == (35, want)


def test_positions_that_every_layer_projects_pass():
    """A small table of relative positions: normalised, given a batch axis, multiplied, added to: all constants."""
    nodes = [
        node("LayerNormalization", ["table", "g", "b"], ["t"]),
        node("Unsqueeze", ["t", "axes"], ["u"]),
        node("MatMul", ["u", "w"], ["p"]),
        node("Add", ["p", "b"], ["q"]),
        node("Reshape", ["q", "split"], ["r"]),
        node("Transpose", ["r"], ["heads"], perm=[0, 2, 1, 3]),
    ]
    given = {"table": np.ones((512, 48), np.float32), "w": np.ones((48, 48), np.float32)}
    given |= {"g": np.ones(48, np.float32), "b": np.ones(48, np.float32), "axes": ints(0), "split": ints(0, 0, 4, 12)}
    check(nodes, given)


def known(array):
    return constants.Known(array.size, array.shape, array)
