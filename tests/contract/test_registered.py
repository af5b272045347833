"""What every registered target, precision, source and objective must offer; a new one is covered by being there."""

from __future__ import annotations

import sys
import textwrap

import pytest

from deploykit import registry, testing
from deploykit.errors import RecipeError, UnknownNameError

EVERY = [(kind, name) for kind in testing.CHECKS for name in registry.names(kind)]

TERNARY = '''
"""ternary: weights of three values, in the form of int8."""
from dataclasses import dataclass
from deploykit.graph.prove import Tolerance

@dataclass(frozen=True)
class Options:
    """No keys."""

TOLERANCE = Tolerance(cosine=0.95, relative_error=0.3)
FORMS = {}
CALIBRATED = False
TARGETS = {"onnxruntime": "int8"}

def lower(task, options, out):
    return {"unchanged": True}
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a precision called ``ternary`` into a package of its own, with its entry point."""

    def put(text=TERNARY):
        info = tmp_path / "site" / "ternary-1.0.dist-info"
        info.mkdir(parents=True)
        (info.parent / "ternary_precision.py").write_text(textwrap.dedent(text))
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ternary\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[deploykit.precisions]\nternary = ternary_precision\n")
        monkeypatch.syspath_prepend(str(info.parent))
        monkeypatch.delitem(sys.modules, "ternary_precision", raising=False)

    yield put
    sys.modules.pop("ternary_precision", None)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_piece_keeps_its_contract(kind, name):
    testing.CHECKS[kind](name)


@pytest.mark.parametrize("kind", registry.KINDS)
def test_an_unknown_name_gives_the_nearest(kind):
    known = registry.names(kind)[0]
    with pytest.raises(UnknownNameError) as caught:
        registry.module(kind, known + "x")
    assert known in caught.value.hint


def test_a_precision_of_another_package_names_its_targets_itself(install):
    install()
    testing.check_precision("ternary")
    assert registry.compiled_as("onnxruntime", "ternary") == "int8"
    assert registry.compiled_as("openvino", "ternary") == ""
    assert registry.compiled_as("onnxruntime", "int8") == "int8"
    from deploykit.catalog import entries

    assert "ternary" in next(e.precisions for e in entries("targets") if e.name == "onnxruntime")


def test_a_form_that_the_target_does_not_have_is_an_error(install):
    install(TERNARY.replace('"int8"}', '"int3"}'))
    with pytest.raises(RecipeError, match="onnxruntime has no precision 'int3'"):
        registry.compiled_as("onnxruntime", "ternary")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('TARGETS = {"onnxruntime": "int8"}', "", "is offered by no target"),
        ("def lower(task, options, out)", "def lower(model, out)", r"lower takes \(model, out\), expected \(task"),
        ("frozen=True", "frozen=False", "Options is not frozen"),
        ("cosine=0.95", "cosine=0.5", "outside 0.9 to 1"),
        ("FORMS = {}", 'FORMS = {"tensorflow": ""}', "do not exist: tensorflow"),
        ('"""No keys."""', "width: int", "no default for width"),
    ],
)
def test_the_kit_says_what_is_missing(install, old, new, says):
    assert old in TERNARY
    install(TERNARY.replace(old, new))
    with pytest.raises(AssertionError, match=says):
        testing.check_precision("ternary")
