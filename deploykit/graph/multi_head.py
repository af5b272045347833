"""Puts onnxruntime's MultiHeadAttention in the place of attention that was written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.attention import AttentionSite, Heads, attention_sites, merged_heads, split_heads
from deploykit.graph.dims import rank
from deploykit.graph.edit import add_constant, array_of, insert, replace
from deploykit.graph.rewrite import tidy

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN = "com.microsoft"


def fuse_multi_head_attention(model: ir.Model) -> int:
    """Replace every attention over heads that were split from [batch, length, width] tensors; returns how many.

    Attention of another layout (rotary positions, shared key heads, windows) stays as it is.
    """
    biases: dict[tuple[ir.Value, ...], ir.Value] = {}
    count = sum(_fuse(model.graph, site, biases) for site in attention_sites(model.graph))
    if count:
        model.opset_imports[DOMAIN] = 1
        tidy(model)
    return count


def _fuse(graph: ir.Graph, site: AttentionSite, biases: dict[tuple[ir.Value, ...], ir.Value]) -> bool:
    query, value = split_heads(site.query), split_heads(site.value)
    key = split_heads(site.key, transposed=True)
    merged = merged_heads(site.product)
    if query is None or key is None or value is None or merged is None or site.guard is not None:
        return False
    if not query.count == key.count == value.count or query.size != key.size:
        return False
    if any(rank(mask) not in (2, 3, 4) for mask in site.masks):
        return False
    reshape = merged.producer()
    assert reshape is not None
    sources, projection_bias = _take_biases(graph, (query, key, value))
    attention_bias = _attention_bias(graph, site, sources, biases) if site.masks else None
    inputs = [*sources, projection_bias, None, attention_bias]
    while inputs[-1] is None:
        inputs.pop()
    fused = insert(
        graph, reshape, "MultiHeadAttention", inputs, domain=DOMAIN, num_heads=query.count, scale=float(site.scale)
    )
    replace(graph, reshape, fused)
    return True


def _take_biases(graph: ir.Graph, heads: Sequence[Heads]) -> tuple[list[ir.Value], ir.Value | None]:
    """Hand the biases of the three projections to the operator, which adds them while it splits the heads."""
    parts = [_without_bias(head) for head in heads]
    constants = [bias for _, bias in parts if bias is not None]
    if len(constants) < len(parts):
        return [head.source for head in heads], None
    return [source for source, _ in parts], add_constant(graph, "attention_projection_bias", np.concatenate(constants))


def _without_bias(head: Heads) -> tuple[ir.Value, np.ndarray | None]:
    node = head.source.producer()
    if node is not None and node.op_type == "Add" and len(head.source.uses()) == 1:
        for product, bias in (node.inputs, node.inputs[::-1]):
            constant = array_of(bias)
            if product is not None and constant is not None and constant.shape == (head.count * head.size,):
                return product, constant
    return head.source, None


def _attention_bias(
    graph: ir.Graph, site: AttentionSite, sources: Sequence[ir.Value], biases: dict[tuple[ir.Value, ...], ir.Value]
) -> ir.Value:
    """The sum of the masks as [batch or 1, heads or 1, q, k]: the operator broadcasts the first two axes only.

    Made once for all layers that share their masks.
    """
    if site.masks not in biases:
        total = site.masks[0]
        for mask in site.masks[1:]:
            total = insert(graph, site.scores, "Add", [total, mask])
        one = add_constant(graph, "attention_one", np.array([1], np.int64))
        sizes = [insert(graph, site.scores, "Shape", [source], start=1, end=2) for source in sources[:2]]
        shape = insert(graph, site.scores, "Concat", [one, one, *sizes], axis=0)
        biases[site.masks] = insert(graph, site.scores, "Expand", [total, shape])
    return biases[site.masks]
