"""Kernels of item encoding on a GPU: rotation and gating in one pass over memory, and attention of short texts.

FlashAttention gives every text and head a tile of 128 queries, of which a title fills a fifth. Here a tile holds some
tokens of a text with all query heads that share a key head, and reads a shared prefix where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate(x, cos, sin, row, heads, HEADS: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    there = head < heads
    c = tl.load(cos + token * 2 * HALF + column).to(tl.float32)
    s = tl.load(sin + token * 2 * HALF + column).to(tl.float32)
    place = x + token * row + head * 2 * HALF + column
    first = tl.load(place, mask=there).to(tl.float32)
    second = tl.load(place + HALF, mask=there).to(tl.float32)
    tl.store(place, first * c - second * s, mask=there)
    tl.store(place + HALF, second * c + first * s, mask=there)


@triton.jit
def _silu_times(x, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    gate = tl.load(x + row * 2 * width + column, mask=there).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + column, mask=there).to(tl.float32)
    tl.store(out + row * width + column, gate * tl.sigmoid(gate) * up, mask=there)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q, k, v, out, offsets, tiles, scale, q_row, k_row, v_row, prefix, window,
    GROUP: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    text, first = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    start, end = tl.load(offsets + text), tl.load(offsets + text + 1)
    before = tl.where(text > 0, prefix, 0)  # the first text is the prefix itself, where there is one
    kv_head = tl.program_id(1)
    rows = tl.arange(0, TOKENS * HEADS)
    token, head = start + first + rows // HEADS, rows % HEADS
    real = (token < end) & (head < GROUP)
    column = tl.arange(0, DIM)
    heads = kv_head * GROUP + head
    queries = tl.load(
        q + token.to(tl.int64)[:, None] * q_row + heads[:, None] * DIM + column[None, :], real[:, None], 0.0
    )
    place = before + token - start
    total = before + end - start
    last = tl.minimum(total, before + first + TOKENS) if CAUSAL else total
    most = tl.full([TOKENS * HEADS], -1e30, tl.float32)
    weight = tl.zeros([TOKENS * HEADS], tl.float32)
    sums = tl.zeros([TOKENS * HEADS, DIM], tl.float32)
    for at in range(0, last, KEYS):
        keys = at + tl.arange(0, KEYS)
        there = keys < last
        row = tl.where(keys < before, keys, start + keys - before).to(tl.int64)
        kt = tl.load(k + row[None, :] * k_row + kv_head * DIM + column[:, None], there[None, :], 0.0)
        scores = tl.dot(queries, kt) * (scale * 1.4426950408889634)
        seen = there[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= place[:, None])
        if WINDOWED:
            seen = seen & (tl.abs(place[:, None] - keys[None, :]) < window)
        scores = tl.where(seen, scores, -1e30)
        now = tl.maximum(most, tl.max(scores, 1))
        shares = tl.where(seen, tl.exp2(scores - now[:, None]), 0.0)
        fade = tl.exp2(most - now)
        weight = weight * fade + tl.sum(shares, 1)
        values = tl.load(v + row[:, None] * v_row + kv_head * DIM + column[None, :], there[:, None], 0.0)
        sums = sums * fade[:, None] + tl.dot(shares.to(values.dtype), values)
        most = now
    sums = sums / tl.maximum(weight, 1e-30)[:, None]
    width = tl.num_programs(1) * GROUP * DIM
    to = out + token.to(tl.int64)[:, None] * width + heads[:, None] * DIM + column[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), real[:, None])


def attend_short(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    offsets: Tensor,
    prefix: int,
    causal: bool,
    window: int | None,
    scale: float,
) -> Tensor:
    """Attention inside texts: q (T, H, D), k and v (T, Hk, D) to (T, H, D); heads lie end to end, D a power of two.

    lengths  of the texts, offsets int32 (n + 1,) of these; with a `prefix` the first text is it, and all others see it
    """
    group, dim = q.shape[1] // k.shape[1], q.shape[2]
    heads = triton.next_power_of_2(group)
    sizes = np.asarray(lengths)
    usual = triton.next_power_of_2(int(np.ceil(sizes.mean())))
    tokens = max(min(128 // heads, usual), 16 // heads, 1)  # tiles of 16 to 128 rows
    counts = -(-sizes // tokens)
    text = np.repeat(np.arange(len(sizes)), counts)
    first = (np.arange(len(text)) - np.repeat(counts.cumsum() - counts, counts)) * tokens
    tiles = torch.from_numpy(np.stack([text, first], axis=1).astype(np.int32)).to(q.device, non_blocking=True)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _attend[(len(text), k.shape[1])](
        q, k, v, out, offsets, tiles, scale, q.stride(0), k.stride(0), v.stride(0), prefix, window or 0,
        group, heads, tokens, 32, dim, causal, window is not None,
    )  # fmt: skip
    return out


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in place on x (T, H, D), D a power of two, heads end to end; contiguous cos and sin (T, D)."""
    tokens, heads, dim = x.shape
    _rotate[(tokens,)](x, cos, sin, x.stride(0), heads, triton.next_power_of_2(heads), dim // 2)
    return x


def silu_times(x: Tensor) -> Tensor:
    """silu(gate) * up (T, F) of contiguous x (T, 2 F)."""
    tokens, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(tokens, width)
    _silu_times[(tokens, triton.cdiv(width, 1024))](x, out, width, 1024)
    return out
