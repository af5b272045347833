import json
from pathlib import Path

import pytest

from deploykit.gate import Choices, Timing, facts, gate
from deploykit.measure import fingerprint, process
from tests.gate import made


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Makes each kind of bundle once: ``bundles("old")``, ``bundles("no-norm", normalized=False)``."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    pytest.importorskip("onnx_ir")
    folder = tmp_path_factory.mktemp("bundles")

    def make(name="old", **faults):
        place = folder / f"{name}.bundle"
        return place if place.exists() else made.bundle(place, **faults)

    return make


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """600 texts."""
    return made.lines(tmp_path_factory.mktemp("data") / "texts.txt")


@pytest.fixture
def clock(monkeypatch):
    """Replaces the measuring processes: times in ms per arm, moved a little from process to process.

    ``clock.set(baseline, candidate, …)``; ``clock.asked`` are the jobs; ``clock.rss(arm, pair)``, if set, gives
    the MiB.
    """

    class Fake:
        def __init__(self):
            self.asked = []
            self.set((4.0, 20.0), (4.0, 20.0))

        def set(self, baseline, candidate, spread=0.002, rss=(100, 100), hardware=None):
            self.arms = {"baseline": (baseline, rss[0]), "candidate": (candidate, rss[1])}
            self.rss, self._began = None, len(self.asked)
            self.spread, self.hardware = spread, hardware or fingerprint.machine()["id"]

        def __call__(self, job, arm, *, python=None, timeout_s=0):
            self.asked.append((arm, job, python))
            count = len(self.asked)
            (single, batch), mib = self.arms[arm.split()[1]]
            if self.rss:
                mib = self.rss(arm.split()[1], (count - self._began - 1) // 2)
            move = 1 + self.spread * ((count * 7919) % 11 - 5)
            times = {"single": single * move, "batch": batch * move}
            wanted = {p["name"]: [times[p["name"]]] * job["calls"] for p in job["points"]}
            items = [1 if name == "single" else 8 for name in wanted]
            return made.answer(wanted, rss=round(mib * 2**20), hardware=self.hardware, items=items)

    fake = Fake()
    monkeypatch.setattr(process, "measure", fake)
    return fake


@pytest.fixture
def inside(monkeypatch):
    """Facts and vectors come from this process, which is quicker than one each; the requests go through JSON."""

    def ask(module, request, arm, *, python=None, timeout_s=0):
        assert module == "deploykit.gate.facts"
        return json.loads(json.dumps(facts.answer(json.loads(json.dumps(request)))))

    monkeypatch.setattr(process, "ask", ask)


@pytest.fixture
def judged(bundles, clock, inside):
    """Gates a candidate against the good bundle, with times that are made up."""

    def run(candidate, baseline=None, **choices):
        settings = Choices(**{"threads": 1, "timing": Timing(seconds=0.0, calls=3), **choices})
        return gate(candidate, baseline or bundles(), settings)

    return run


def row(result, name):
    return next(row for row in result.rows if row.name == name)


@pytest.fixture(autouse=True)
def _children_find_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
