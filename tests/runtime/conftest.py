import textwrap

import pytest

from tests.runtime import made


@pytest.fixture
def tiny(tmp_path):
    """A fresh bundle of the tiny encoder, to break or to load."""
    pytest.importorskip("onnx")
    pytest.importorskip("tokenizers")
    return made.bundle(tmp_path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """The same bundle, for tests that only read it."""
    pytest.importorskip("onnx")
    pytest.importorskip("tokenizers")
    return made.bundle(tmp_path_factory.mktemp("shared"))


ENGINE = """
import os, signal, time
import numpy as np
from deploykit.runtime.engines import onnxruntime
from deploykit.runtime.errors import BundleError


class Engine:
    def __init__(self, inner, settings):
        self._inner, self._settings, self.effective = inner, settings, {"engine": "fake"}

    def run(self, feeds):
        time.sleep(self._settings.get("ms", 0) / 1e3)
        return self._spoiled(self._inner.run(feeds))

    def run_many(self, batches):
        return [self._spoiled(outputs) for outputs in self._inner.run_many(batches)]

    def close(self):
        self._inner.close()

    def _spoiled(self, outputs):
        share = self._settings.get("wrong", 0.0)
        return {k: v + np.float32(share) * np.roll(v, 1, axis=1) for k, v in outputs.items()}


def open_engine(path, card, settings, options):
    if "log" in settings:
        with open(settings["log"], "a") as log:
            log.write(f"{os.getpid()}\\n")
    if "die" in settings:
        os.kill(os.getpid(), getattr(signal, settings["die"]))
    if "hang" in settings:
        time.sleep(settings["hang"])
    if "refuse" in settings:
        raise BundleError(settings["refuse"], hint="load another")
    return Engine(onnxruntime.open_engine(path, card, {}, options), settings)
"""


@pytest.fixture
def fake_engine(tmp_path, monkeypatch):
    """An engine called ``fake`` that can be slow (ms), wrong (a share), or die (a signal's name) or hang (seconds) when
    it is opened; in this process and in those that it starts.
    """
    site = tmp_path / "site"
    (site / "fake_engine-1.0.dist-info").mkdir(parents=True)
    (site / "fake_engine.py").write_text(textwrap.dedent(ENGINE))
    (site / "fake_engine-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fake-engine\nVersion: 1.0\n"
    )
    (site / "fake_engine-1.0.dist-info" / "entry_points.txt").write_text("[deploykit.engines]\nfake = fake_engine\n")
    monkeypatch.syspath_prepend(str(site))
    return site
