"""The contestants: each factory opens one encoder, in whichever environment has its packages.

A factory takes the settings of its arm and returns ``(encode, batch_sizes, runs)``. ``encode(texts, batch_size)``
returns float32 [n, dim] in the order of ``texts``; ``batch_sizes`` are those worth trying, empty where the encoder
decides alone; ``runs`` says what was chosen, where the arm's name does not.

Every peer gets its documented fast settings, the same number of threads, and sorts by length in its own way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[Sequence[str], int], np.ndarray]
Opened = tuple[Encode, tuple[int, ...], str]

BATCH_SIZES = (8, 16, 32, 64)
TOKEN_BUDGETS = (1024, 2048, 4096, 8192)


def deploykit(*, threads: int, bundle: str, variant: str | None) -> Opened:
    """A variant of a bundle, or the one that deploykit picks by itself."""
    from deploykit.runtime import load

    encoder = load(bundle, variant=variant, threads=threads)
    return lambda texts, _: encoder.encode(list(texts)), (), "" if variant else encoder.variant.name


def sentence_transformers_torch(*, threads: int, model: str, dtype: str, compiled: bool = False) -> Opened:
    """sentence-transformers in torch: float32, or ``model.bfloat16()``, perhaps through ``torch.compile``."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu")
    if dtype == "bfloat16":
        encoder.bfloat16()
    if compiled:
        encoder.compile(dynamic=True)
    return _sentence_transformers(encoder), BATCH_SIZES, ""


def sentence_transformers_onnx(*, threads: int, model: str, cache: str, file_name: str) -> Opened:
    """Its ONNX backend; ``file_name`` picks the plain export, the one optimized at level O3, or the int8 one."""
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    folder = _prepared(Path(cache) / "sentence-transformers-onnx", lambda out: _export_onnx(model, out))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    kwargs = {"provider": "CPUExecutionProvider", "session_options": options, "file_name": f"onnx/{file_name}"}
    encoder = SentenceTransformer(str(folder), device="cpu", backend="onnx", model_kwargs=kwargs)
    return _sentence_transformers(encoder), BATCH_SIZES, ""


def sentence_transformers_openvino(*, threads: int, model: str, cache: str, hints: dict[str, Any]) -> Opened:
    """Its OpenVINO backend; no hints at all is its default, which on CPUs with AMX computes in bf16."""
    from sentence_transformers import SentenceTransformer

    def export(out: Path) -> None:
        SentenceTransformer(model, device="cpu", backend="openvino").save_pretrained(str(out))

    folder = _prepared(Path(cache) / "sentence-transformers-openvino", export)
    kwargs = {"device": "CPU", "ov_config": {"INFERENCE_NUM_THREADS": threads, **hints}}
    encoder = SentenceTransformer(str(folder), device="cpu", backend="openvino", model_kwargs=kwargs)
    return _sentence_transformers(encoder), BATCH_SIZES, ""


def by_hand_torch(*, threads: int, model: str) -> Opened:
    """What a careful engineer writes in an afternoon: bf16 torch, texts sorted by length, batches by padded tokens."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel

    torch.set_num_threads(threads)
    network = AutoModel.from_pretrained(model, dtype=torch.bfloat16).eval()
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.enable_truncation(max_length(model))
    tokenizer.no_padding()

    def encode(texts: Sequence[str], budget: int) -> np.ndarray:
        encodings = [e.ids for e in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: -len(encodings[i]))
        vectors = np.empty((len(texts), network.config.hidden_size), np.float32)
        start = 0
        while start < len(order):
            longest = len(encodings[order[start]])
            rows = order[start : start + max(1, budget // longest)]
            vectors[rows] = _embed_batch(network, [encodings[i] for i in rows])
            start += len(rows)
        return vectors

    return encode, TOKEN_BUDGETS, ""


def max_length(model: str | Path) -> int:
    """Where a sentence-transformers folder truncates, in tokens."""
    return int(json.loads((Path(model) / "sentence_bert_config.json").read_text())["max_seq_length"])


def _embed_batch(network: Any, rows: list[list[int]]) -> np.ndarray:
    import torch

    ids = torch.zeros(len(rows), len(rows[0]), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    with torch.inference_mode():
        hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return torch.nn.functional.normalize(pooled, dim=1).numpy()


def _sentence_transformers(encoder: Any) -> Encode:
    return lambda texts, batch_size: np.asarray(
        encoder.encode(list(texts), batch_size=batch_size, show_progress_bar=False), np.float32
    )


def _prepared(folder: Path, export: Callable[[Path], None]) -> Path:
    """``folder``, exported on first use; a killed run leaves nothing half-written under its name."""
    if not folder.exists():
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        export(part)
        part.rename(folder)
    return folder


def _export_onnx(model: str, out: Path) -> None:
    """Save the plain export and the two files that sentence-transformers' documentation makes from it for CPUs."""
    from sentence_transformers import (
        SentenceTransformer,
        export_dynamic_quantized_onnx_model,
        export_optimized_onnx_model,
    )

    encoder = SentenceTransformer(
        model, device="cpu", backend="onnx", model_kwargs={"provider": "CPUExecutionProvider", "export": True}
    )
    encoder.save_pretrained(str(out))
    export_optimized_onnx_model(encoder, "O3", str(out))
    export_dynamic_quantized_onnx_model(encoder, _int8_configuration(), str(out), file_suffix="int8")


def _int8_configuration() -> str:
    """The preset that the documentation names for this CPU."""
    if os.uname().machine == "aarch64":
        return "arm64"
    features = Path("/proc/cpuinfo").read_text().split()
    return next((f for f in ("avx512_vnni", "avx512f", "avx2") if f in features), "avx2").replace("512f", "512")


FACTORIES: dict[str, Callable[..., Opened]] = {
    f.__name__: f
    for f in (
        deploykit,
        sentence_transformers_torch,
        sentence_transformers_onnx,
        sentence_transformers_openvino,
        by_hand_torch,
    )
}
