"""Attention as it is traced must be torch's attention, and must come through every exporter."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from deploykit.graph.plain_attention import MASKED, attention, plain_attention  # noqa: E402

BATCH, HEADS, QUERIES, KEYS, SIZE, VALUE_SIZE = 2, 3, 5, 7, 4, 6


def tensors(heads_of_keys=HEADS):
    generator = torch.Generator().manual_seed(0)

    def make(*shape):
        return torch.randn(*shape, generator=generator)

    return (
        make(BATCH, HEADS, QUERIES, SIZE),
        make(BATCH, heads_of_keys, KEYS, SIZE),
        make(BATCH, heads_of_keys, KEYS, VALUE_SIZE),
    )


def padding(*shape):
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    return mask


MASKS = {
    "none": None,
    "padding": padding(BATCH, 1, 1, KEYS),
    "per query": padding(BATCH, 1, QUERIES, KEYS),
    "relative bias": torch.randn(1, HEADS, QUERIES, KEYS, generator=torch.Generator().manual_seed(2)),
    "minus infinity": torch.where(padding(BATCH, 1, 1, KEYS), 0.0, -math.inf),
    "smallest float": torch.where(padding(BATCH, 1, QUERIES, KEYS), 0.0, torch.finfo(torch.float32).min),
    "two axes": padding(QUERIES, KEYS),
}


@pytest.mark.parametrize("name", MASKS)
def test_equals_torch_under_every_kind_of_mask(name):
    query, key, value = tensors()
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, MASKS[name])
    torch.testing.assert_close(attention(query, key, value, MASKS[name]), wanted)


@pytest.mark.parametrize("options", [{"scale": 0.3}, {"is_causal": True}, {"scale": 1.0, "is_causal": True}])
def test_equals_torch_with_scale_and_causality(options):
    query, key, value = tensors()
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(attention(query, key, value, **options), wanted)


def test_shares_heads_of_keys_among_groups_of_queries():
    query, key, value = tensors(heads_of_keys=1)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, value, enable_gqa=True), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hidden", [False, -math.inf])
def test_a_row_that_is_masked_whole_stays_finite(dtype, hidden):
    query, key, value = (tensor.to(dtype) for tensor in tensors())
    mask = torch.ones(QUERIES, KEYS, dtype=torch.bool) if hidden is False else torch.zeros(QUERIES, KEYS, dtype=dtype)
    mask[2] = hidden
    assert attention(100 * query, key, value, mask).isfinite().all()


def test_a_masked_key_counts_for_nothing():
    query, key, value = tensors()
    mask = torch.ones(KEYS, dtype=torch.bool)
    mask[3] = False
    changed = value.clone()
    changed[:, :, 3] = 1e6
    torch.testing.assert_close(attention(query, key, changed, mask), attention(query, key, value, mask))
    assert torch.exp(torch.tensor(MASKED)) == 0


def test_is_undone_when_the_block_ends_with_an_error():
    original = torch.nn.functional.scaled_dot_product_attention
    fast_path = torch.backends.mha.get_fastpath_enabled()

    def fail():
        with plain_attention():
            assert torch.nn.functional.scaled_dot_product_attention is attention
            assert not torch.backends.mha.get_fastpath_enabled()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.nn.functional.scaled_dot_product_attention is original
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


class Layer(torch.nn.Module):
    """`TransformerEncoderLayer`, which reaches attention through MultiheadAttention and has a fast path around it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0)

    def forward(self, x, hidden):
        return self.layer(x, src_key_padding_mask=hidden)


@pytest.mark.parametrize("strict", [False, True])
def test_survives_torch_export_with_dynamic_axes(strict):
    module = Layer().eval()
    x = torch.randn(3, 5, 12)
    hidden = torch.zeros(3, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with plain_attention(), torch.no_grad():
        program = torch.export.export(module, (x, hidden), dynamic_shapes=(axes, axes), strict=strict)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if "scaled_dot_product" in name or "_transformer_encoder" in name]
    assert "aten.softmax.int" in operators
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x, hidden), module(x, hidden), atol=1e-5, rtol=1e-5)
