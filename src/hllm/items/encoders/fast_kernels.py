"""Two kernels of item encoding on a GPU, each in one pass over memory."""

from __future__ import annotations

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
