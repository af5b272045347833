"""What the exporters really write, with and without plain attention, must come out of `clean` ready to be fused."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ir = pytest.importorskip("onnx_ir")
transformers = pytest.importorskip("transformers")

from deploykit.graph.multi_head import fuse_multi_head_attention  # noqa: E402
from deploykit.graph.plain_attention import plain_attention  # noqa: E402
from deploykit.graph.rewrite import clean  # noqa: E402

NAMES = ("input_ids", "attention_mask")


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=113,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        self.model = transformers.BertModel(config)

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]


def inputs(batch, length):
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch):
        mask[row, max(1, length - 2 * row) :] = 0
    ids = torch.randint(5, 100, (batch, length), generator=torch.Generator().manual_seed(length)) * mask
    return dict(zip(NAMES, (ids, mask), strict=True))


@pytest.fixture(scope="module")
def encoder():
    return Encoder().eval()


def export(encoder, path, *, dynamo, plain):
    axes = {0: "batch", 1: "length"}
    shapes = {"dynamic_shapes": dict.fromkeys(NAMES, axes)} if dynamo else {"dynamic_axes": dict.fromkeys(NAMES, axes)}
    patch = plain_attention() if plain else contextlib.nullcontext()
    with warnings.catch_warnings(), torch.no_grad(), patch:
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            encoder,
            (),
            None if dynamo else str(path),
            kwargs=inputs(3, 11),
            dynamo=dynamo,
            opset_version=20,
            input_names=list(NAMES),
            output_names=["sentence_embedding"],
            verbose=False,
            **shapes,
        )
    return program.model_proto if dynamo else onnx.load(path)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "guarded"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
def test_every_attention_is_fused_and_equal_to_torch(encoder, tmp_path, dynamo, plain):
    model = export(encoder, tmp_path / "raw.onnx", dynamo=dynamo, plain=plain)
    operators = [node.op_type for node in model.graph.node]
    assert ("IsNaN" in operators) != plain
    cleaned = clean(model)
    assert len(cleaned.graph.node) < len(operators)
    assert [node.op_type for node in clean(cleaned).graph.node] == [node.op_type for node in cleaned.graph.node]
    whole = ir.from_proto(cleaned)
    assert fuse_multi_head_attention(whole) == 2
    sessions = [onnxruntime.InferenceSession(m.SerializeToString()) for m in (cleaned, ir.to_proto(whole))]
    for batch, length in ((1, 1), (1, 2), (2, 7), (5, 64)):
        given = inputs(batch, length)
        with torch.no_grad():
            wanted = encoder(**given).numpy()
        for session in sessions:
            result = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})[0]
            np.testing.assert_allclose(result, wanted, rtol=1e-3, atol=1e-4)
