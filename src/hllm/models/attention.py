"""Causal attention over packed sequences, behind one function: `attend`.

The portable form lays whole sequences into rows of equal length, several to a row (packing.py),
and runs PyTorch's scaled dot-product attention once, with a mask that keeps each token inside its
own sequence. One call a layer, whatever the mix of lengths: grouping sequences into rectangles of
similar length does less arithmetic, but its dozen small calls a layer cost more than they save.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hllm.packing import Rows


def attention_mask(rows: Rows) -> Tensor:
    """bool (B, 1, R, R): query slot i may look at key slot j of the same sequence with j <= i.

    Empty slots look at each other, so that no softmax is taken over nothing.
    """
    same = rows.segments.unsqueeze(2) == rows.segments.unsqueeze(1)  # (B, R, R)
    return same.tril().unsqueeze(1)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    mask: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of every packed token to its own sequence's tokens, up to itself.

    q, k, v (T, H, D); mask from `attention_mask`; bias (H, R, R) added to the scores, or None;
    dropout on the attention weights. Returns (T, H, D).
    """
    b, r = rows.segments.shape
    n_heads, width = q.shape[1:]
    qkv = torch.stack((q, k, v), dim=1)  # (T, 3, H, D)
    grid = qkv.new_zeros(b * r, 3, n_heads, width).index_copy(0, rows.slots, qkv)
    qr, kr, vr = grid.view(b, r, 3, n_heads, width).permute(2, 0, 3, 1, 4)  # each (B, H, R, D)
    if bias is not None:
        mask = bias.to(q.dtype).masked_fill(~mask, float("-inf"))  # (B, H, R, R)
    out = F.scaled_dot_product_attention(qr, kr, vr, attn_mask=mask, dropout_p=dropout)
    return out.transpose(1, 2).reshape(b * r, n_heads, width)[rows.slots]
