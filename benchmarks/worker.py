"""One contestant in a process of its own: JSON requests on standard input, JSON answers on standard output, one a line.

::

    {"do": "open", "factory": …, "settings": {…}, "texts": FILE, "queries": FILE}   → versions, batch sizes, seconds
    {"do": "tune", "count": 256}      the batch size that is fastest on evenly spaced texts → all the trials
    {"do": "throughput"}              encode all texts once → seconds
    {"do": "latency", "count": 100}   encode queries one at a time → milliseconds of each
    {"do": "vectors", "sentences": FILE, "out": FILE}                               → the shape

Files of texts are JSON lists. It needs numpy and what its factory imports, and runs in any of the environments.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
from encoders import FACTORIES

REPORTED = (
    *("deploykit", "numpy", "onnxruntime", "openvino", "optimum-intel", "optimum-onnx", "sentence-transformers"),
    *("tokenizers", "torch", "transformers"),
)
WARM_UP_TEXTS, WARM_UP_QUERIES = 64, 10


class Contestant:
    """An opened encoder with its texts."""

    def open(self, factory: str, settings: dict[str, Any], texts: str, queries: str) -> dict[str, Any]:
        self.texts: list[str] = json.loads(Path(texts).read_text())
        self.queries: list[str] = json.loads(Path(queries).read_text())
        started = time.perf_counter()
        self.encode, self.batch_sizes, runs = FACTORIES[factory](**settings)
        self.encode(self.queries[:1], 1)
        self.batch_size = self.batch_sizes[0] if self.batch_sizes else 0
        return {"open_seconds": time.perf_counter() - started, "versions": _versions(), "runs": runs}

    def tune(self, count: int) -> dict[str, Any]:
        """Seconds per batch size (the better of two runs, after a warm-up); the fastest is kept."""
        sample = self.texts[:: max(1, len(self.texts) // count)]
        trials = {}
        for batch_size in self.batch_sizes:
            self.encode(sample, batch_size)
            trials[batch_size] = min(self._seconds(sample, batch_size) for _ in range(2))
        if trials:
            self.batch_size = min(trials, key=trials.__getitem__)
        return {"batch_size": self.batch_size, "seconds": trials}

    def throughput(self) -> dict[str, Any]:
        self.encode(self.texts[:WARM_UP_TEXTS], self.batch_size)
        return {"seconds": self._seconds(self.texts, self.batch_size)}

    def latency(self, count: int) -> dict[str, Any]:
        for query in self.queries[:WARM_UP_QUERIES]:
            self.encode([query], 1)
        chosen = [self.queries[i % len(self.queries)] for i in range(count)]
        return {"milliseconds": [1e3 * self._seconds([query], 1) for query in chosen]}

    def vectors(self, sentences: str, out: str) -> dict[str, Any]:
        vectors = self.encode(json.loads(Path(sentences).read_text()), self.batch_size)
        np.save(out, vectors)
        return {"shape": list(vectors.shape)}

    def _seconds(self, texts: list[str], batch_size: int) -> float:
        started = time.perf_counter()
        self.encode(texts, batch_size)
        return time.perf_counter() - started


def _versions() -> dict[str, str]:
    installed = {d.name.lower(): d.version for d in distributions() if d.name}
    return {name: installed[name] for name in REPORTED if name in installed}


def _die_with_parent() -> None:
    """A stopped worker cannot notice that its parent is gone: let the kernel end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print goes to the log
    contestant = Contestant()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(contestant, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
