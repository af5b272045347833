"""Data of the user reaches the proof of what takes preprocessed tensors."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit import api
from deploykit.pipeline.plan import plan

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_tensors_to_judge_by_are_what_the_export_is_proven_on(tmp_path, role):
    (tmp_path / "m.onnx").write_bytes(b"no model is read here")
    np.savez(tmp_path / "x.npz", x=np.ones((9, 3), np.float32))
    recipe = api.recipe(tmp_path / "m.onnx", data={role: tmp_path / "x.npz"})
    options = plan(recipe).step("export").options
    assert options["source"]["example"] == str(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 3), np.float32))
    assert plan(recipe).step("export").options["example"] != options["example"]


def test_an_example_comes_before_other_data(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model is read here")
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((9, 3), np.float32))
    recipe = api.recipe(
        tmp_path / "m.onnx", data={"calibration": tmp_path / "a.npz"}, overrides={"example": str(tmp_path / "b.npz")}
    )
    assert plan(recipe).step("export").options["source"]["example"] == str(tmp_path / "b.npz")
