"""The verify step must notice an engine that is right one batch at a time and wrong with several in flight."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from deploykit.errors import ExportError, MissingError, ProofError
from deploykit.graph.prove import Case, matrix, write_cases
from deploykit.pipeline import actions, variants
from deploykit.runtime.manifest import Card, Embedding, TensorSpec, to_json

CARD = Card(
    name="unit vectors",
    modality="tensor",
    inputs=(TensorSpec("x", "float32", ("batch", 384)),),
    outputs=(TensorSpec("y", "float32", ("batch", 384)),),
    embedding=Embedding("y", 384, "none", True),
    preprocess={"kind": "none"},
)


class Echo:
    """Gives its input back; with several batches in flight a little of another vector is mixed in."""

    effective = {"engine": "echo"}  # noqa: RUF012

    def __init__(self, fault):
        self.fault = fault

    def run(self, feeds):
        return {"y": feeds["x"]}

    def run_many(self, batches):
        return [{"y": feeds["x"] + self.fault} for feeds in batches]

    def close(self):
        pass


@pytest.fixture
def verify(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    cases = []
    for at in matrix({}):
        x = draw.normal(size=(at["batch"], 384)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        cases.append(Case(at, {"x": x}, x))
    (tmp_path / "export").mkdir()
    (tmp_path / "compile").mkdir()
    write_cases(cases, tmp_path / "export")
    (tmp_path / "export" / "card.json").write_text(json.dumps(to_json(CARD)))
    record = {"metadata": {"path": "model.onnx", "settings": {}}}
    (tmp_path / "compile" / "artifact.json").write_text(json.dumps(record))
    target = actions.registry.module("targets", "onnxruntime")
    monkeypatch.setattr(target, "audit", lambda artifact, card, settings: {})

    def run(fault):
        monkeypatch.setattr(variants, "open_engine", lambda *arguments: Echo(fault))
        inputs = {"export": tmp_path / "export", "compile:onnxruntime-fp32": tmp_path / "compile"}
        options = {"name": "onnxruntime-fp32", "target": "onnxruntime", "precision": "fp32", "options": {}}
        return actions.verify(options, inputs, tmp_path)

    return run


def test_an_engine_that_agrees_both_ways_passes(verify):
    assert verify(0.0)["proof"]["cases"] == 3


def test_a_small_fault_with_several_batches_in_flight_is_found(verify):
    with pytest.raises(ProofError, match="with several batches in flight"):
        verify(0.005)


def test_without_its_device_a_variant_is_proven_by_the_check_and_says_so(verify, monkeypatch):
    target = variants.registry.module("targets", "onnxruntime")
    monkeypatch.setattr(variants, "unmet", lambda variant, device: "no NVIDIA GPU is here")
    with pytest.raises(MissingError, match="cannot be proven here: no NVIDIA GPU"):
        verify(0.0)

    class Checker(Echo):
        effective = {"engine": "checker", "version": "1.0"}  # noqa: RUF012

    monkeypatch.setattr(target, "check_engine", lambda artifact, card, settings: Checker(0.0), raising=False)
    monkeypatch.setattr(target, "audit", lambda artifact, card, settings: {"sentence": "It runs."})
    found = verify(0.0)
    assert found["proof"]["checked_on"] == "checker 1.0 on the CPU"
    assert found["proof"]["cases"] == 3
    assert found["effective"]["device"] == "not run here"
    assert "not run on its own device here: no NVIDIA GPU" in found["notes"][0]
    # What the checker does with several batches in flight says nothing about the engine that it stands for.
    monkeypatch.setattr(target, "check_engine", lambda artifact, card, settings: Checker(0.005))
    assert verify(0.0)["proof"] == found["proof"]


def test_what_was_only_checked_is_not_timed(tmp_path):
    for name, proof in (("ran", {}), ("checked", {"checked_on": "the CPU"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "artifact.json").write_text(json.dumps({"metadata": {"proof": proof}}))
    inputs = {f"verify:{name}": tmp_path / name for name in ("ran", "checked")}
    assert [name for name in ("ran", "checked") if variants.ran_here(name, inputs)] == ["ran"]


def test_the_length_that_gives_no_number_is_the_one_that_is_named():
    card = SimpleNamespace(embedding=SimpleNamespace(output="y"))
    vectors = np.ones((2, 4), np.float32)
    cases = [Case({"length": length}, {"x": vectors * length}, vectors) for length in (1, 2, 3, 4)]

    def run(feeds):
        length = int(feeds["x"][0, 0])
        return {"y": {2: vectors * [1, 1, 1, 0.9], 3: vectors * np.nan}.get(length, vectors)}

    with pytest.raises(ProofError, match=r"it is wrong at length 3: mean cosine nan to fp32 there, 1\.0000 at most"):
        variants._lengths(SimpleNamespace(run=run), card, cases, "it")


def test_where_the_engine_itself_does_not_run_some_lengths_will_do(tmp_path):
    asked = []
    card = Card(**{**vars(CARD), "inputs": (TensorSpec("x", "float32", ("batch", "length", 8)),)})

    def run(feeds):
        asked.append(feeds["x"].shape[1])
        return {"y": feeds["x"].mean(1)}

    cases = []
    for length in (1, 2, 3, 5, 31, 32, 33, 64, 96, 256):
        x = np.random.default_rng(length).normal(size=(2, length, 8)).astype(np.float32)
        cases.append(Case({"length": length}, {"x": x}, x.mean(1)))
    write_cases(cases, tmp_path, "lengths")
    write_cases(cases[:1], tmp_path, "evaluation")
    (tmp_path / "inputs.json").write_text(json.dumps({"inputs": ["a", "b"], "sizes": [1, 1]}))
    whole = variants.measure_drift(SimpleNamespace(run=run), card, tmp_path, "it")
    assert whole["lengths"]["checked"] == 10
    asked.clear()
    some = variants.measure_drift(SimpleNamespace(run=run), card, tmp_path, "it", ran=False)
    assert some["lengths"]["checked"] == 7
    assert asked[1:] == [1, 2, 3, 32, 64, 96, 256]


def test_a_lowered_graph_of_two_files_is_refused(verify, tmp_path, monkeypatch):
    def compile_model(model, card, precision, options, out):
        for name in ("model.onnx", "model.onnx.data"):
            (out / name).write_bytes(b"x")
        return SimpleNamespace(path="model.onnx")

    target = actions.registry.module("targets", "onnxruntime")
    monkeypatch.setattr(target, "compile", compile_model)
    spec = variants.Spec("onnxruntime-fp16", "onnxruntime", "fp16", {})
    with pytest.raises(ExportError, match="onnxruntime-fp16 has more weights than one ONNX file holds"):
        variants.compile_model(spec, tmp_path, {}, {"export": tmp_path / "export"}, tmp_path)
