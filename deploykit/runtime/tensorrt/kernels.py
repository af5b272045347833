"""What TensorRT for RTX compiles for this GPU while it runs, kept from process to process beside the engine.

Its engines hold code for no GPU in particular: kernels are compiled when a context first needs them, which takes
seconds. A kept file is executable code like the engine: it lies in the same private folder (`cache`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any


class Kernels:
    """The runtime cache of one engine's contexts, read from ``path`` where it is there."""

    def __init__(self, config: Any, path: Path) -> None:
        self._path = path
        self._cache = config.create_runtime_cache()
        self._before = path.read_bytes() if path.exists() else b""
        if self._before:
            self._cache.deserialize(self._before)  # False for one of another version: it is compiled anew
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write what was compiled since; a full disk or a folder that is gone is no reason to fail."""
        now = bytes(memoryview(self._cache.serialize()))
        if now == self._before:
            return
        with contextlib.suppress(OSError):
            descriptor, unfinished = tempfile.mkstemp(dir=self._path.parent)  # mode 0600
            with os.fdopen(descriptor, "wb") as file:
                file.write(now)
            Path(unfinished).replace(self._path)
