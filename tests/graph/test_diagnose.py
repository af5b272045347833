"""The line of the model's own source that a failure comes down to."""

from __future__ import annotations

import pytest

from deploykit.graph.diagnose import freezing_line, frozen, line_of, mentioned, specialised


def failing(tmp_path):
    """An exception whose innermost frames are: a model's file, then torch's."""
    model, tool = tmp_path / "modeling_odd.py", tmp_path / "torch" / "inner.py"
    tool.parent.mkdir()
    tool.write_text("def trace(x):\n    raise ValueError('deep inside')\n")
    model.write_text("def forward(x, trace):\n    y = x\n    return trace(y)  # the line\n")
    spaces = [{}, {}]
    for path, space in zip((model, tool), spaces, strict=True):
        exec(compile(path.read_text(), str(path), "exec"), space)
    try:
        spaces[0]["forward"](1, spaces[1]["trace"])
    except ValueError as error:
        return error
    raise AssertionError


def test_the_innermost_line_outside_the_tools_is_named(tmp_path):
    assert line_of(failing(tmp_path)) == "modeling_odd.py:3 in forward: return trace(y)  # the line"


def test_the_line_is_found_in_the_cause(tmp_path):
    wrapped = RuntimeError("the exporter failed")
    wrapped.__cause__ = failing(tmp_path)
    assert line_of(wrapped).startswith("modeling_odd.py:3")


def test_a_line_that_the_message_names_is_taken_where_no_frame_is():
    stack = 'File "/x/modeling_odd.py", line 7, in attend\n  File "/x/torch/a.py", line 1, in f'
    text = f"could not guard\nUser Stack:\n  {stack}"
    assert mentioned(text).startswith("modeling_odd.py:7 in attend")
    assert mentioned("nothing of the kind") == ""


def test_a_size_that_became_a_number_is_placed():
    torch = pytest.importorskip("torch")

    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.reshape(-1, 3, 7)[:, :, : int(x.shape[1]) // 3].sum()

    auto = torch.export.Dim.AUTO
    program = torch.export.export(Odd(), (torch.ones(2, 21),), dynamic_shapes=({0: auto, 1: auto},))
    assert "test_diagnose.py" in specialised(program)


@pytest.mark.parametrize(
    "message",
    [
        "conflicts:\n- tracing inferred a static shape of 8 for dimension inputs['ids'].shape[1].",
        "constraints violated: L['ids'].size()[1] was inferred to be a constant (8).",
    ],
)
def test_an_axis_that_tracing_froze_is_read_from_the_exporter_s_report(message):
    wrapped = RuntimeError("Failed to export the model")
    wrapped.__cause__ = ValueError(message)
    assert frozen(wrapped) == ("ids", 1, 8)
    assert frozen(RuntimeError("another reason")) is None


def test_the_line_that_froze_an_axis_is_found_by_a_trace_that_may_freeze_it():
    torch = pytest.importorskip("torch")

    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.reshape(-1, 3, 7)[:, :, : int(x.shape[1]) // 3].sum()

    assert "test_diagnose.py" in freezing_line(Odd(), {"x": torch.ones(2, 21)}, {"x": {0: "batch", 1: "length"}})
    assert freezing_line(torch.nn.Linear(5, 2), {"x": torch.ones(2, 3)}, {"x": {0: "batch"}}) == ""


def test_giving_up_says_why_before_how_wrong(tmp_path):
    from deploykit.errors import ExportError, ProofError
    from deploykit.graph.export import _give_up

    wrong, why = ProofError("it disagrees", hint="look"), ExportError("axis 'length' was fixed at 8", hint="one size")
    assert _give_up([("dynamo", wrong)]) is wrong
    error = _give_up([("dynamo", why), ("torchscript", wrong)])
    assert isinstance(error, ExportError)
    assert "axis 'length' was fixed at 8" in error.message
    assert "it disagrees" in error.message


def test_giving_up_knows_at_which_sizes_a_graph_that_came_out_is_wrong(tmp_path):
    from deploykit.errors import ProofError
    from deploykit.graph.export import _give_up

    wrong = ProofError("it disagrees", hint="look")
    wrong.wrong_at = [{"batch": 1, "length": 7}]
    error = _give_up([("dynamo", failing(tmp_path)), ("torchscript", wrong)])
    assert error.wrong_at == wrong.wrong_at
    assert error.__cause__ is wrong


def test_giving_up_names_every_exporter_the_line_and_what_to_try(tmp_path):
    from deploykit.errors import BundleError, ExportError
    from deploykit.graph.export import _give_up

    error = _give_up([("dynamo", failing(tmp_path)), ("torchscript", BundleError("cannot load it", hint="upgrade"))])
    assert isinstance(error, ExportError)
    assert "dynamo: ValueError: deep inside, at modeling_odd.py:3" in error.message
    assert "torchscript: BundleError: cannot load it" in error.message
    assert "three things to try" in (error.hint or "")
