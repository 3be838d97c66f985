"""Attention over packed sequences: `attend` with a softmax, `attend_pointwise` without.

The portable form lays whole sequences into rows of equal length, several to a row (packing.py),
and runs PyTorch's scaled dot-product attention once, with a mask that keeps each token inside its
own sequence. One call a layer, whatever the mix of lengths: grouping sequences into rectangles of
similar length does less arithmetic, but its dozen small calls a layer cost more than they save.
Long rows go in blocks of queries, so that memory grows with the length and not with its square. A CPU, which
such calls cost little, takes longer histories one at a time (spans.py). On an NVIDIA GPU, a training batch is not
laid into rows at all: kernels of our own go by the bounds of its sequences (kernels/attention.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hllm.kernels.attention import packed_attention
from hllm.models.relbias import by_distance_matrix, distance_bias
from hllm.models.spans import Spans, attend_spans, make_spans
from hllm.models.timebias import LOG_STEP, Gaps, gap_bias
from hllm.packing import Rows, last_positions, segment_ids

MASK_ENTRIES = 1 << 27  # entries (B, H, R, R) of mask and bias above which queries go in blocks


@dataclass(frozen=True)
class Layout:
    """Rows with what every layer needs of them.

    mask   bool (B, 1, R, R): who may look at whom; None for rows so long that it is made block by block
    spans  where histories begin and end, on a CPU that attends to one at a time
    """

    rows: Rows
    mask: Tensor | None
    spans: Spans | None = None

    @property
    def length(self) -> int:
        """Slots of a row, R, which no distance reaches; of the longest sequence, where attention goes by bounds."""
        return self.rows.longest or self.rows.segments.shape[1]


def make_layout(rows: Rows, n_heads: int) -> Layout:
    """The layout of `rows` for attention with `n_heads` heads."""
    if rows.bounds is not None:
        return Layout(rows, None)
    b, r = rows.segments.shape
    mask = visible(rows, 0, r, r).unsqueeze(1) if b * n_heads * r * r <= MASK_ENTRIES else None
    return Layout(rows, mask, make_spans(rows))


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
    qkv: Tensor,
    layout: Layout,
    by_distance: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of every packed token to those of its own sequence that it may see.

    qkv (T, 3, H, D): queries, keys and values; by_distance (H, R) added to the scores by distance i - j, or None;
    dropout on the attention weights. Returns (T, H, D).
    """
    bounds = layout.rows.bounds
    if bounds is not None:
        assert not dropout, "attention by bounds drops no weights"
        return packed_attention(qkv, bounds, by_distance, None, None, 1.0, 0.0)[0]

    def softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, first: int) -> Tensor:
        if by_distance is not None:
            bias = distance_bias(by_distance, first, first + q.shape[2], k.shape[2]).to(q.dtype)
            mask = bias.masked_fill(~mask, float("-inf"))  # (B, H, R, R)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

    wide = qkv.dtype in (torch.float32, torch.float64)
    if layout.spans is not None and by_distance is not None and wide and not dropout:
        longest = max(b - a for a, b in layout.spans)
        return attend_spans(qkv, by_distance_matrix(by_distance[:, :longest]), layout.spans)
    return mix(qkv, layout, softmax, random=dropout > 0)


def attend_last(q: Tensor, kv: Tensor, offsets: Tensor, by_distance: Tensor) -> Tensor:
    """`attend` for the last token of each sequence alone, of packed ones that none is empty of.

    q (U, H, D) its queries; kv (T, 2, H, D) keys and values of all; offsets (U + 1,); by_distance (H, R). Returns
    (U, H, D).
    """
    (u, n_heads, width), t = q.shape, kv.shape[0]
    k, v = kv.unbind(1)
    whose = segment_ids(offsets, t)  # (T,)
    distance = last_positions(offsets)[whose] - torch.arange(t, device=q.device)
    scores = (q[whose] * k).sum(2) * width**-0.5 + by_distance.T[distance]  # (T, H)
    each = whose.unsqueeze(1).expand(t, n_heads)
    peak = scores.new_full((u, n_heads), float("-inf")).scatter_reduce_(0, each, scores, "amax")
    weights = (scores - peak[whose]).exp_()
    total = scores.new_zeros(u, n_heads).index_add_(0, whose, weights)
    mixed = q.new_zeros(u, n_heads, width).index_add_(0, whose, weights.unsqueeze(2) * v)
    return mixed / total.unsqueeze(2)


def attend_pointwise(
    vqk: Tensor,
    layout: Layout,
    n: float,
    by_distance: Tensor,
    by_gap: Tensor | None = None,
    gaps: Gaps | None = None,
) -> Tensor:
    """HSTU's attention (Zhai et al., 2024): weights SiLU(q k + bias) / n, each by itself, without a softmax.

    vqk (T, 3, H, D): values, queries and keys; by_distance (H, R) and by_gap (H, K) are added to the scores by the
    distance i - j and by the time bucket of `gaps`. What a token may not see has weight 0. Returns (T, H, D).
    """
    if layout.rows.bounds is not None:
        timed = None if gaps is None or by_gap is None else gaps.seconds
        by_gap = None if timed is None else by_gap
        return packed_attention(vqk, layout.rows.bounds, by_distance, by_gap, timed, LOG_STEP, n)[0]

    def silu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, first: int) -> Tensor:
        last, stop = first + q.shape[2], k.shape[2]
        scores = q @ k.transpose(2, 3) + distance_bias(by_distance, first, last, stop).to(q.dtype)
        if by_gap is not None and gaps is not None:
            scores = scores + gap_bias(by_gap, gaps.buckets(first, last, stop)).to(q.dtype)
        return (F.silu(scores) / n).masked_fill(~mask, 0) @ v

    return mix(vqk.roll(-1, 1), layout, silu)


Mixer = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def mix(qkv: Tensor, layout: Layout, mixer: Mixer, random: bool = False) -> Tensor:
    """Lay packed `qkv` (T, 3, H, D) into rows, let `mixer` attend there, and take the tokens (T, H, D) out again.

    `mixer(q, k, v, mask, first)` has queries (B, H, m, D) from slot `first` on, keys and values (B, H, n, D) from
    slot 0 on, and who may be seen, bool (B, 1, m, n). `random`: it draws random numbers.
    """
    rows = layout.rows
    b, r = rows.segments.shape
    n_heads, width = qkv.shape[2:]
    grid = qkv.new_zeros(b * r, 3, n_heads, width).index_copy(0, rows.slots, qkv)
    qr, kr, vr = grid.view(b, r, 3, n_heads, width).permute(2, 0, 3, 1, 4)  # each (B, H, R, D)
    if layout.mask is None:
        out = _in_blocks(qr, kr, vr, rows, mixer, random)
    else:
        out = mixer(qr, kr, vr, layout.mask, 0)
    return out.transpose(1, 2).reshape(b * r, n_heads, width)[rows.slots]


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, rows: Rows, mixer: Mixer, random: bool) -> Tensor:
    """`mixer` on some queries at a time, q, k, v (B, H, R, D); each block is computed again in backward."""
    b, n_heads, r, _ = q.shape
    size = max(1, MASK_ENTRIES // (8 * b * n_heads * r))

    def block(q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
        mask = visible(rows, first, first + q.shape[2], k.shape[2]).unsqueeze(1)
        return mixer(q, k, v, mask, first)

    done = []
    for first in range(0, r, size):
        last = min(first + size, r)
        # In causal rows later keys are never seen.
        stop = last if rows.order is None else r
        args = (q[:, :, first:last], k[:, :, :stop], v[:, :, :stop], first)
        if torch.is_grad_enabled():
            done.append(checkpoint(block, *args, use_reentrant=False, preserve_rng_state=random))
        else:
            done.append(block(*args))
    return torch.cat(done, dim=2)
