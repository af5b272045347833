"""A piece of Python that does not end is stopped, and leaves its time to what comes next."""

from __future__ import annotations

import threading
import time

import pytest

from deploykit.errors import ExportError
from deploykit.graph.time_limit import at_most


def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def test_what_takes_too_long_is_stopped():
    with (
        pytest.raises(ExportError, match="the slow one was still running after 0 s") as caught,
        at_most(0.1, "the slow one", "wait"),
    ):
        busy(20)
    assert caught.value.hint == "wait"


def test_what_catches_every_exception_is_stopped_too():
    def stubborn():
        for _ in range(2000):
            try:
                time.sleep(0.01)
            except Exception:
                continue

    with pytest.raises(ExportError), at_most(0.1, "it", "wait"):
        stubborn()


def test_what_catches_everything_is_stopped_when_it_ends():
    def deaf():
        try:
            busy(20)
        except BaseException:
            return

    with pytest.raises(ExportError), at_most(0.1, "it", "wait"):
        deaf()


def test_what_ends_in_time_is_left_alone():
    with at_most(0.2, "it", "wait"):
        answer = 1
    with at_most(None, "it", "wait"):
        answer += 1
    busy(0.4)
    assert answer == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "deploykit-time-limit"]


def test_a_failure_of_its_own_stays():
    with pytest.raises(KeyError), at_most(30, "it", "wait"):
        raise KeyError("its own")


def test_another_thread_has_its_own_limit():
    said = []

    def work():
        try:
            with at_most(0.05, "it", "wait"):
                busy(20)
        except ExportError as error:
            said.append(error.message)

    thread = threading.Thread(target=work)
    thread.start()
    busy(0.5)
    thread.join(10)
    assert said == ["it was still running after 0 s and was stopped"]


def test_an_exporter_that_hangs_leaves_the_next_its_time(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    from deploykit.graph import export as module
    from deploykit.runtime.manifest import Card, Embedding, Limits, TensorSpec
    from deploykit.sources import Source

    card = Card(
        name="it",
        modality="tensor",
        inputs=(TensorSpec("x", "float32", ("batch", 3)),),
        outputs=(TensorSpec("tensor_embedding", "float32", ("batch", 3)),),
        embedding=Embedding("tensor_embedding", 3, "none", False),
        preprocess={"kind": "none"},
        limits=Limits({}),
        provenance={},
    )
    source = Source(card, torch.nn.Identity(), lambda batch, sizes, seed: {"x": torch.ones(batch, 3)}, {})

    def run(exporter, *rest):
        if exporter == "dynamo":
            busy(20)
        return ""

    monkeypatch.setattr(module, "_run_exporter", run)
    monkeypatch.setattr(module, "reference", lambda source: lambda feeds: feeds["x"])
    monkeypatch.setattr(module, "_finish", lambda *rest: {"cases": 1})
    exported, _ = module.export(source, module.ExportOptions(seconds=0.5), tmp_path)
    assert exported.exporter == "torchscript"
    assert "the dynamo exporter was still running" in exported.notes[0]
