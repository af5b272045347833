"""What the contestants are given: texts in bulk, single queries, and sentences whose vectors are compared."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encoders import max_length


@dataclass(frozen=True)
class Workload:
    """Texts to encode in bulk, short queries, and sentences (pairwise, with scores where there are any)."""

    texts: list[str]
    queries: list[str]
    sentences: list[str]
    scores: np.ndarray | None


def read_workload(texts: Path, count: int, pairs: Path | None) -> Workload:
    """``count`` non-empty lines of ``texts``, evenly spaced; queries and sentences from the STS benchmark if given."""
    lines = [line.strip() for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    chosen = [lines[i * len(lines) // count] for i in range(min(count, len(lines)))]
    if pairs is None:
        short = [line for line in lines if 4 <= len(line.split()) <= 20]
        return Workload(chosen, short[:300], chosen[: len(chosen) // 2 * 2], None)
    with pairs.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    sentences = [sentence for row in rows for sentence in row[5:7]]
    return Workload(chosen, sentences[:300], sentences, np.array([float(row[4]) for row in rows]))


def token_counts(model: Path, texts: list[str]) -> np.ndarray:
    """Tokens of each text as the model reads it: special tokens included, truncated, no padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.enable_truncation(max_length(model))
    tokenizer.no_padding()
    return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)])


def describe(workload: Workload, file: Path, model: Path, queries: int) -> dict[str, Any]:
    """The sizes of the workload, in texts and tokens."""
    counts, query_counts = token_counts(model, workload.texts), token_counts(model, workload.queries)
    p10, p50, p90 = (int(np.percentile(counts, p)) for p in (10, 50, 90))
    return {
        "file": file.name,
        "texts": len(workload.texts),
        "tokens": int(counts.sum()),
        "tokens_p10": p10,
        "tokens_p50": p50,
        "tokens_p90": p90,
        "queries_per_round": queries,
        "query_tokens_p50": int(np.percentile(query_counts, 50)),
        "pairs": len(workload.sentences) // 2 if workload.scores is not None else 0,
    }


def default_files() -> tuple[Path, Path | None]:
    """Real text of mixed length below DEPLOYKIT_DATA where that is set, else the sentences that deploykit brings."""
    if folder := os.environ.get("DEPLOYKIT_DATA"):
        return Path(folder) / "wikitext2" / "test.txt", Path(folder) / "stsb" / "sts-dev.csv"
    import deploykit.data

    return Path(str(deploykit.data.__file__)).with_name("sentences.txt"), None
