"""Attention over packed sequences, behind one function: `attend`.

The portable form lays whole sequences into rows of equal length, several to a row (packing.py),
and runs PyTorch's scaled dot-product attention once, with a mask that keeps each token inside its
own sequence. One call a layer, whatever the mix of lengths: grouping sequences into rectangles of
similar length does less arithmetic, but its dozen small calls a layer cost more than they save.
Long rows go in blocks of queries, so that memory grows with the length and not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hllm.models.relbias import by_distance_block, by_distance_matrix
from hllm.packing import Rows

MASK_ENTRIES = 1 << 27  # entries (B, H, R, R) of mask and bias above which queries go in blocks


@dataclass(frozen=True)
class Layout:
    """Rows with what every layer needs of them.

    mask  bool (B, 1, R, R): who may look at whom; None for rows so long that it is made block by block
    """

    rows: Rows
    mask: Tensor | None

    @property
    def length(self) -> int:
        """Slots of a row, R."""
        return self.rows.segments.shape[1]


def make_layout(rows: Rows, n_heads: int) -> Layout:
    """The layout of `rows` for attention with `n_heads` heads."""
    b, r = rows.segments.shape
    return Layout(rows, visible(rows, 0, r, r).unsqueeze(1) if b * n_heads * r * r <= MASK_ENTRIES else None)


def visible(rows: Rows, first: int, last: int, stop: int) -> Tensor:
    """bool (B, last - first, stop): query slot i in [first, last) may look at key slot j < stop (see `Rows`).

    Empty slots look at each other, so that no softmax is taken over nothing.
    """
    segments = rows.segments
    same = segments[:, first:last].unsqueeze(2) == segments[:, :stop].unsqueeze(1)
    i = torch.arange(first, last, device=segments.device).unsqueeze(1)
    j = torch.arange(stop, device=segments.device)
    if rows.order is None:
        return same & (j <= i)
    order_i, order_j = rows.order[:, first:last].unsqueeze(2), rows.order[:, :stop].unsqueeze(1)
    seen = order_j <= order_i if rows.mutual else order_j < order_i
    return same & (seen | (i == j))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    by_distance: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of every packed token to those of its own sequence that it may see.

    q, k, v (T, H, D); by_distance (H, R) added to the scores by distance i - j, or None; dropout on the
    attention weights. Returns (T, H, D).
    """
    rows = layout.rows
    b, r = rows.segments.shape
    n_heads, width = q.shape[1:]
    qkv = torch.stack((q, k, v), dim=1)  # (T, 3, H, D)
    grid = qkv.new_zeros(b * r, 3, n_heads, width).index_copy(0, rows.slots, qkv)
    qr, kr, vr = grid.view(b, r, 3, n_heads, width).permute(2, 0, 3, 1, 4)  # each (B, H, R, D)
    if layout.mask is None:
        out = _in_blocks(qr, kr, vr, rows, by_distance, dropout)
    else:
        mask = layout.mask
        if by_distance is not None:
            bias = by_distance_matrix(by_distance).to(q.dtype)
            mask = bias.masked_fill(~mask, float("-inf"))  # (B, H, R, R)
        out = F.scaled_dot_product_attention(qr, kr, vr, attn_mask=mask, dropout_p=dropout)
    return out.transpose(1, 2).reshape(b * r, n_heads, width)[rows.slots]


def _in_blocks(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, by_distance: Tensor | None, dropout: float
) -> Tensor:
    """The same for q, k, v (B, H, R, D), some queries at a time; each block is computed again in backward."""
    b, n_heads, r, _ = q.shape
    size = max(1, MASK_ENTRIES // (8 * b * n_heads * r))
    done = []
    for first in range(0, r, size):
        last = min(first + size, r)
        # In causal rows later keys are never seen.
        stop = last if rows.order is None else r
        args = (q[:, :, first:last], k[:, :, :stop], v[:, :, :stop], rows, by_distance, first, dropout)
        if torch.is_grad_enabled():
            done.append(checkpoint(_block, *args, use_reentrant=False, preserve_rng_state=dropout > 0))
        else:
            done.append(_block(*args))
    return torch.cat(done, dim=2)


def _block(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, by_distance: Tensor | None, first: int, dropout: float
) -> Tensor:
    last, stop = first + q.shape[2], k.shape[2]
    mask = visible(rows, first, last, stop).unsqueeze(1)
    if by_distance is not None:
        bias = by_distance_block(by_distance, first, last, stop).to(q.dtype)
        mask = bias.masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
