"""Every name of TensorRT that the source uses is one that all supported versions offer; none is weakly typed."""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for path in (ROOT / "deploykit").rglob("*.py") if "tensorrt" in str(path.relative_to(ROOT))]
# Gone in 11.x.
WEAK = {"EXPLICIT_BATCH", "FP16", "BF16", "INT8", "FP8", "int8_calibrator", "set_calibration_profile", "num_bindings"}


def offered():
    lines = (ROOT / "tests" / "tensorrt_api.txt").read_text(encoding="utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return {first: set(marks) for first, *marks in words}


def attributes(path):
    """The nodes ``a.b.c`` of a file, as their dotted text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def used():
    names = set().union(*map(attributes, FILES))
    return {name.removeprefix("trt.") for name in names if name.startswith("trt.")}


def test_what_the_source_uses_is_on_the_list_and_the_list_holds_no_more():
    found = {name for name in used() if not name.startswith("ComputeCapability.")}
    assert len(found) > 15
    assert found == set(offered())


def test_what_rtx_alone_has_is_asked_for_before_it_is_used():
    source = "".join(path.read_text(encoding="utf-8") for path in FILES)
    for name, marks in offered().items():
        assert ("rtx" in marks) == ("asked" in marks)
        if "asked" in marks:
            assert f'getattr(trt, "{name}", None)' in source


def test_nothing_weakly_typed_is_used():
    last = {name.rpartition(".")[2] for path in FILES for name in attributes(path)}
    assert not last & WEAK


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_what_is_installed_offers_the_list(module):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    trt = importlib.import_module(module)
    for name, marks in offered().items():
        if not marks or module == "tensorrt_rtx":
            functools.reduce(getattr, name.split("."), trt)
