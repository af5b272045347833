"""The peer of the coverage sweep in an environment of its own: optimum's ONNX export, judged by deploykit's proof.

Optimum hands over token vectors and leaves the pooling to its user, so what is compared is the first output of its
graph with what the torch model gives under that name, at every point of the shape matrix; padded places do not count.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.coverage_models import Architecture
from benchmarks.coverage_plain import judged
from deploykit.graph import prove
from deploykit.sources import Source

HERE = Path(__file__).resolve().parent
_FILES = ("model.onnx", "encoder_model.onnx")
_EDGE = 48
"""Pixels on a side of the pictures that a model of two towers gets beside its text."""
_PATH = 50
"""Tags of MarkupLM's path to a token, the default of its config."""


def export(name: str, folder: Path, timeout_s: float) -> dict[str, Any]:
    """Make and export the checkpoint at ``folder`` with optimum; what failed, or nothing."""
    python = peers.python("onnx", peers.HOME)
    command = [str(python), str(HERE / "coverage_optimum_export.py"), name, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"step": "export", "result": "hang", "why": f"was still running after {timeout_s:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"step": "export", "result": "crash", "why": f"ended with code {done.returncode}: {last[:300]}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return {"result": "refused", **found} if found else {}


def judge(entry: Architecture, source: Source, folder: Path) -> dict[str, dict[str, Any]]:
    """For each engine: proven, wrong (with how), or its refusal; ``source`` brings the shape matrix and its inputs."""
    path = next((folder / "onnx" / file for file in _FILES if (folder / "onnx" / file).exists()), None)
    if path is None:
        return {"export": {"result": "refused", "why": f"it wrote neither {' nor '.join(_FILES)}"}}
    inputs, output = _interface(path)
    if entry.model and "decoder_input_ids" in inputs:
        why = "it exported a decoder of random weights with the encoder, and nothing says what is right"
        return {"judge": {"result": "refused", "why": why}}
    model = _model(entry, folder, path.name)
    cases = []
    for seed, at in enumerate(prove.matrix(source.sizes)):
        made = source.make_inputs(at["batch"], {axis: size for axis, size in at.items() if axis != "batch"}, seed)
        feeds = _completed({name: np.asarray(tensor) for name, tensor in made.items()}, inputs)
        cases.append(prove.Case(at, feeds, unpadded(_asked(model, feeds, output), feeds)))
    return judged(cases, path, "the export of optimum", unpadded)


def unpadded(answer: np.ndarray, feeds: prove.Feeds) -> np.ndarray:
    """One row for each input: token vectors [batch, length, width] side by side, zero where the mask says padding."""
    mask = feeds.get("attention_mask")
    if mask is not None and answer.ndim == 3 and answer.shape[:2] == mask.shape:
        answer = answer * (mask[..., None] > 0)
    return answer.reshape(len(answer), -1)


def _interface(path: Path) -> tuple[list[str], str]:
    """The names of the graph's inputs and of its first output."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in weights], graph.output[0].name


def _completed(feeds: dict[str, np.ndarray], inputs: Sequence[str]) -> dict[str, np.ndarray]:
    """The inputs that the graph takes: token types and places on a page are 0, and a second tower gets one picture or
    text for all. Of a translator whose two halves were exported as one, the second begins with one token.
    """
    batch = len(next(iter(feeds.values())))
    tokens = feeds.get("input_ids", np.full((batch, 7), 3, np.int64))
    paths = np.zeros((*tokens.shape, _PATH), np.int64)
    others = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "token_type_ids": np.zeros_like(tokens),
        "position_ids": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape).copy(),
        "bbox": np.zeros((*tokens.shape, 4), np.int64),
        "global_attention_mask": np.zeros_like(tokens),
        "xpath_tags_seq": paths,
        "xpath_subs_seq": paths,
        "decoder_input_ids": np.full((batch, 1), 2, np.int64),
        "decoder_attention_mask": np.ones((batch, 1), np.int64),
        "pixel_values": np.full((batch, 3, _EDGE, _EDGE), 0.5, np.float32),
    }
    return {name: feeds[name] if name in feeds else others[name] for name in inputs}


def _model(entry: Architecture, folder: Path, file: str) -> Any:
    """The torch model that optimum exported: as its config says, of a translator the encoder alone."""
    import transformers

    kind = getattr(transformers, entry.model) if entry.model else transformers.AutoModel
    model = kind.from_pretrained(folder).eval()
    return model if file == _FILES[0] else model.get_encoder()


def _asked(model: Any, feeds: prove.Feeds, output: str) -> np.ndarray:
    import torch

    with torch.inference_mode():
        answer = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    found: np.ndarray = getattr(answer, output).numpy()
    return found
