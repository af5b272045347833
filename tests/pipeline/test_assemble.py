"""Engines that were built ahead of time go beside the bundle, never into it: they are executable code."""

from __future__ import annotations

import json

import pytest

from deploykit.pipeline.assemble import _copy_engines, _stays_out
from deploykit.pipeline.decide import Decided
from deploykit.pipeline.store import Artifact
from deploykit.runtime.tensorrt.build import SCHEMA


def compiled(folder, *names):
    folder.mkdir()
    for name in ("model.onnx", "artifact.json", *names):
        (folder / name).write_text(f"{folder.name}/{name}")
    return Artifact("compile", folder, "d", {"path": "model.onnx"})


@pytest.fixture
def decided(tmp_path):
    engines = ("model.sm89.engine", "model.sm89.json", "model.sm120.engine", "model.sm120.json")
    artifacts = {
        "compile:tensorrt-rtx-fp16": compiled(tmp_path / "fp16", *engines),
        "compile:onnxruntime-fp32": compiled(tmp_path / "fp32"),
        "export": compiled(tmp_path / "export", "model.sm75.engine", "model.sm75.json"),
    }
    return Decided(artifacts, (), ())


def test_each_engine_goes_beside_the_bundle_with_its_metadata(decided, tmp_path):
    _copy_engines(decided, tmp_path / "m.bundle")
    folder = tmp_path / "m.engines"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"tensorrt-rtx-fp16.{end}" for end in ("sm120.engine", "sm120.json", "sm89.engine", "sm89.json")
    ]
    assert (folder / "tensorrt-rtx-fp16.sm89.engine").read_text() == "fp16/model.sm89.engine"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "m.bundle").exists()


def test_engines_of_an_earlier_bundle_go_and_nothing_else(decided, tmp_path):
    folder = tmp_path / "m.engines"
    _copy_engines(decided, tmp_path / "m.bundle")
    record = json.dumps({"schema": SCHEMA})
    for name, text in (("tensorrt-rtx-fp8.sm89", record), ("mine", "{}")):
        (folder / f"{name}.engine").write_text("an engine")
        (folder / f"{name}.json").write_text(text)
    _copy_engines(decided, tmp_path / "m.bundle")
    assert not list(folder.glob("tensorrt-rtx-fp8.*"))
    assert len(list(folder.glob("mine.*"))) == 2
    assert len(list(folder.glob("tensorrt-rtx-fp16.*"))) == 4


def test_the_folder_goes_with_its_last_engine(tmp_path):
    folder = tmp_path / "m.engines"
    folder.mkdir()
    (folder / "x.engine").write_text("an engine")
    (folder / "x.json").write_text(json.dumps({"schema": SCHEMA}))
    _copy_engines(Decided({}, (), ()), tmp_path / "m.bundle")
    assert not folder.exists()


def test_an_engine_that_changed_is_copied_again(decided, tmp_path):
    _copy_engines(decided, tmp_path / "m.bundle")
    copied = tmp_path / "m.engines" / "tensorrt-rtx-fp16.sm89.engine"
    copied.write_text("fp16/model.sm89.ENGINE")
    _copy_engines(decided, tmp_path / "m.bundle")
    assert copied.read_text() == "fp16/model.sm89.engine"


def test_without_engines_no_folder_is_made(tmp_path):
    _copy_engines(Decided({"compile:x": compiled(tmp_path / "x")}, (), ()), tmp_path / "m.bundle")
    assert not (tmp_path / "m.engines").exists()


def test_no_engine_gets_into_a_bundle(decided):
    folder = decided.artifacts["compile:tensorrt-rtx-fp16"].path
    kept = sorted(path.name for path in folder.iterdir() if not _stays_out(path))
    assert not any(name.endswith(".engine") for name in kept)
    assert "model.onnx" in kept
