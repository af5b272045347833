"""The bundle's side of one row of `benchmarks.strangers`: load and encode, in a process without torch.

    python benchmarks/strangers_worker.py FOLDER

reads ``FOLDER/calls.json`` and ``FOLDER/row.bundle``; writes ``FOLDER/got-N.npy`` and ``FOLDER/encoded.json``.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import deploykit
from deploykit.errors import DeploykitError


def main(folder: Path) -> None:
    """Encode every call; what went wrong in one does not stop the next."""
    calls = json.loads((folder / "calls.json").read_text("utf-8"))
    facts = []
    try:
        encoder = deploykit.load(folder / "row.bundle")
    except Exception as error:
        facts = [_failed(error)] * len(calls)
    else:
        with encoder:
            facts = [_encoded(encoder, folder, index, call) for index, call in enumerate(calls)]
    (folder / "encoded.json").write_text(json.dumps(facts), encoding="utf-8")


def _encoded(encoder: Any, folder: Path, index: int, call: Mapping[str, Any]) -> dict[str, Any]:
    inputs = call["inputs"]
    if inputs is None:
        with np.load(folder / f"tensors-{index}.npz") as tensors:
            inputs = dict(tensors)
    try:
        vectors = encoder.encode(inputs, kind=call["kind"])
    except Exception as error:
        return _failed(error)
    np.save(folder / f"got-{index}.npy", vectors)
    return {"ended": "vectors"}


def _failed(error: Exception) -> dict[str, Any]:
    if isinstance(error, DeploykitError):
        return {"ended": "error", "message": error.message, "hint": error.hint or ""}
    return {"ended": "traceback", "message": traceback.format_exception_only(error)[-1].strip()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
