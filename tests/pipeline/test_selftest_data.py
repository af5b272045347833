"""The self-test's inputs as cases of the proof: each alone, and the short ones together, where padding shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from deploykit.graph.prove import LONG_TOKENS, Case  # noqa: E402
from deploykit.pipeline import selftest_data  # noqa: E402
from deploykit.sources import open_source  # noqa: E402
from tests import tiny  # noqa: E402


def _written(model: Path, out: Path) -> list[Case]:
    source = open_source(str(model))
    for name, path in source.files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(path.read_bytes())
    return selftest_data.write(source, lambda feeds: np.ones((len(feeds["input_ids"]), 24), np.float32), out)


def test_short_texts_are_proven_together_and_long_ones_alone(tmp_path):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = transformers.BertConfig(**sizes, vocab_size=113, max_position_embeddings=300)
    transformers.BertModel(config).eval().save_pretrained(tmp_path / "model")
    *alone, together = _written(tiny.wordpiece(tmp_path / "model", 300), tmp_path)
    lengths = [case.feeds["input_ids"].shape[1] for case in alone]
    assert max(lengths) > LONG_TOKENS
    short = [length for length in lengths if length <= LONG_TOKENS]
    assert 1 < len(short) < len(alone)
    assert together.at == {"batch": len(short), "length": max(short)}


def test_a_tokenizer_that_frames_nothing_gets_every_text_but_the_empty_one(tmp_path):
    framed = _written(tiny.tiny_bert(tmp_path / "framed"), tmp_path / "a")
    model = tiny.tiny_bert(tmp_path / "model")
    content = json.loads((model / "tokenizer.json").read_text("utf-8"))
    (model / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}), "utf-8")
    config = json.loads((model / "tokenizer_config.json").read_text("utf-8"))
    bare = {**config, "tokenizer_class": "PreTrainedTokenizerFast", "cls_token": None, "sep_token": None}
    (model / "tokenizer_config.json").write_text(json.dumps(bare), "utf-8")
    cases = _written(model, tmp_path / "b")
    assert len(cases) == len(framed) - 1
    texts = json.loads((tmp_path / "b" / "selftest" / "inputs.json").read_text("utf-8"))
    assert len(texts) == len(cases) - 1
    assert "" not in texts
