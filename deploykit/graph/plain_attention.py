"""Attention written out while a model is traced: matmul, finite additive mask, softmax, matmul.

Exporters translate `torch.nn.functional.scaled_dot_product_attention` into a form with an IsNaN guard and masks of
minus infinity. The guard defeats the attention fusions of OpenVINO and ONNX Runtime, infinity turns a row that is
masked whole into NaN, and some masks cannot be translated at all. The form written here has none of these.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: What a masked position adds to its score. e^-30000 is 0 in every float type, so a masked key counts for nothing
#: beside a visible one; the sum of it and a score stays inside fp16 (65504) and bf16; and a row that is masked whole
#: becomes the softmax of its scores instead of NaN.
MASKED = -30000.0

_NAME = "scaled_dot_product_attention"
_lock = threading.RLock()


@contextmanager
def plain_attention() -> Iterator[None]:
    """Replace scaled dot product attention by `attention` wherever it is reached from, until the block ends.

    Every loaded module that holds the function under its own name is patched (``from torch.nn.functional import …``),
    and the fast path of `torch.nn.TransformerEncoder`, which bypasses it, is switched off. The replacement is
    process-wide: blocks in several threads take turns.
    """
    import torch

    with _lock:
        original = getattr(torch.nn.functional, _NAME)
        holders = _holders(original)
        fast_path = torch.backends.mha.get_fastpath_enabled()
        for module in holders:
            setattr(module, _NAME, attention)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module in holders:
                setattr(module, _NAME, original)


def _holders(function: object) -> list[ModuleType]:
    # `vars`, not `getattr`: asking a lazy package for a name would import all of it. The extension module keeps the
    # original, which the exporters look up there by identity.
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and not name.startswith("torch._C") and vars(module).get(_NAME) is function
    ]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What `torch.nn.functional.scaled_dot_product_attention` computes, in operators that every exporter knows.

    Shapes: query [..., heads, q, size], key [..., heads, k, size], value [..., heads, k, value size]; the mask
    broadcasts to [..., heads, q, k], bool (True: visible) or additive. It differs from torch in one case: a row that
    is masked whole gives a finite average of the values, where torch gives zeros or NaN.
    """
    import torch

    if enable_gqa:
        key, value = _share_heads(query, key), _share_heads(query, value)
    factor = query.size(-1) ** -0.5 if scale is None else scale
    scores = torch.matmul(query * factor, key.transpose(-2, -1))
    if is_causal:
        rows = torch.arange(query.size(-2), device=query.device)[:, None]
        scores = scores + _additive(torch.arange(key.size(-2), device=query.device)[None, :] <= rows, query.dtype)
    if attn_mask is not None:
        scores = scores + _additive(attn_mask, query.dtype)
    weights = torch.softmax(scores, dim=-1)
    if dropout_p > 0.0:
        weights = torch.dropout(weights, dropout_p, train=True)
    return torch.matmul(weights, value)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask as finite numbers to add to the scores."""
    import torch

    if mask.dtype == torch.bool:
        return torch.where(mask, 0.0, MASKED).to(dtype)
    return mask.to(dtype).clamp(min=MASKED)


def _share_heads(query: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Repeat each head of keys or values for the group of query heads that uses it."""
    groups = query.size(-3) // shared.size(-3)
    return shared if groups == 1 else shared.repeat_interleave(groups, dim=-3)
