"""The self-test's inputs as cases of the proof: each alone, and the short ones together, where padding shows."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.graph.prove import LONG_TOKENS  # noqa: E402
from deploykit.pipeline import selftest_data  # noqa: E402
from deploykit.sources import open_source  # noqa: E402
from tests import tiny  # noqa: E402


def test_short_texts_are_proven_together_and_long_ones_alone(tmp_path):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = transformers.BertConfig(**sizes, vocab_size=113, max_position_embeddings=300)
    transformers.BertModel(config).eval().save_pretrained(tmp_path / "model")
    source = open_source(str(tiny.wordpiece(tmp_path / "model", 300)))
    for name, path in source.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(path.read_bytes())
    *alone, together = selftest_data.write(
        source, lambda feeds: np.ones((len(feeds["input_ids"]), 24), np.float32), tmp_path
    )
    lengths = [case.feeds["input_ids"].shape[1] for case in alone]
    assert max(lengths) > LONG_TOKENS
    short = [length for length in lengths if length <= LONG_TOKENS]
    assert 1 < len(short) < len(alone)
    assert together.at == {"batch": len(short), "length": max(short)}
