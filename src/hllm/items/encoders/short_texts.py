"""Attention inside packs of short texts on a GPU.

FlashAttention (Dao, 2023) gives every text and head a tile of 128 queries, of which a title fills a fifth. Here a tile
holds some tokens of a text with all query heads that share a key head, and a shared prefix is read where it lies.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from hllm.items.encoders.pack import Pack
from hllm.items.encoders.packed_attention import attend_grid

LONGEST = 256  # tokens of a text on average, up to which this is the faster kernel
ROWS, KEYS, WARPS = 128, 32, 4  # of a tile: queries, a step's keys, warps


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
    q: Tensor, k: Tensor, v: Tensor, pack: Pack, causal: bool, window: int | None, scale: float
) -> Tensor:
    """As `attend`, without gradient, half precision: heads of q, k and v lie end to end, D a power of two."""
    group, dim = q.shape[1] // k.shape[1], q.shape[2]
    heads = triton.next_power_of_2(group)
    usual = triton.next_power_of_2(-(-pack.total // len(pack.lengths)))
    tokens = max(min(ROWS // heads, usual), 16 // heads, 1)  # a product has at least 16 rows
    tiles = pack.tiles(tokens)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _attend[(len(tiles), k.shape[1])](
        q, k, v, out, pack.offsets, tiles, scale, q.stride(0), k.stride(0), v.stride(0), pack.prefix, window or 0,
        group, heads, tokens, KEYS, dim, causal, window is not None, num_warps=WARPS,
    )  # fmt: skip
    return out


def takes(q: Tensor, k: Tensor, v: Tensor, pack: Pack) -> bool:
    """Whether this kernel is the one for these texts; tried once a device."""
    dim = q.shape[-1]
    return (
        q.dtype in (torch.bfloat16, torch.float16)
        and dim in (32, 64, 128)
        and all(x.stride()[1:] == (dim, 1) for x in (q, k, v))
        and pack.total < LONGEST * len(pack.lengths)
        and works(q.device)
    )


@functools.cache
def works(device: torch.device) -> bool:
    """Whether the kernel's values equal the portable form's here."""
    try:
        return all(_agrees(device, heads) for heads in (2, 3, 8))
    except Exception:  # a card that Triton does not know
        return False


@torch.no_grad()
def _agrees(device: torch.device, heads: int) -> bool:
    """Compare in float32: a prefix, grouped heads, a window, both directions; parts of one wider matrix."""
    generator = torch.Generator(device).manual_seed(0)
    for prefix, window, causal in ((5, None, True), (0, None, False), (5, 32, True), (0, 9, False)):
        pack = Pack([5, 40, 7, 130, 1], device, prefix=prefix)
        wide = torch.randn(pack.total, (heads + 2) * 2 * 64, device=device, generator=generator).bfloat16()
        sizes = [heads * 2 * 64, 2 * 64, 2 * 64]
        q, k, v = (part.unflatten(-1, (-1, 64)) for part in wide.split(sizes, -1))
        got = attend_short(q, k, v, pack, causal, window, 0.125)
        want = attend_grid(q.float(), k.float(), v.float(), pack, causal, window, 0.125)
        if not float((got.float() - want).norm() / want.norm()) < 2e-2:
            return False
    return True
