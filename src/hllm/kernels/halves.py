"""Products of float32 matrices by the tensor cores of a GPU, nearly as exact as float32's own.

A number is kept as the sum of two float16 ones, its rounding and what that left out: 22 bits of float32's 24. Three
products of halves with float32 accumulators then make one product (Markidis et al., 2018, arXiv:1803.04014); the
fourth, of what was left out on both sides, is below the last bit. Accumulators round more than float32 products do:
the error is up to six times that of float32's own product (tests/kernels/test_halves.py), and some ranks are others by
a place or two of 400,000 (benchmarks/ranking_gpu.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 2.0**11  # what float16 rounds off is below 2^-11 of a number: scaled up, it keeps its own bits
LEAST = 1 << 24  # numbers in a matrix from which splitting it pays


class HalvedRows:
    """Rows float32 (n, d) on a GPU, of norm 1 at most, for products with queries of a norm below 60,000.

    halves  float16 (n, 2 d): the rows rounded, then what that left out, times `STEP`

    The halves of the last query are kept for the next tile of its scores: a query tensor is not to be changed in
    place between two calls.
    """

    def __init__(self, rows: Tensor) -> None:
        n, self.width = rows.shape
        self.halves = rows.new_empty((n, 2 * self.width), dtype=torch.float16)
        for part, into in zip(rows.split(1 << 15), self.halves.split(1 << 15), strict=True):
            _split(part, into[:, : self.width], into[:, self.width :])
        # The query itself is held beside its halves, so that no other can come to be at its address.
        self.last: tuple[Tensor, Tensor] | None = None

    def scores(self, query: Tensor, which: slice | Tensor) -> Tensor:
        """`query` (U, d) times the rows of `which`: float32 (U, m)."""
        rows, d, both = self.halves[which], self.width, self._halved(query)
        small = torch.mm(both, rows.T, out_dtype=torch.float32)
        return torch.addmm(
            small, both[:, d:], rows[:, :d].T, out_dtype=torch.float32, beta=1 / STEP, out=small
        )

    def _halved(self, query: Tensor) -> Tensor:
        """`query` (U, d) as float16 (U, 2 d): left out where rows are rounded, rounded where they are left out."""
        last = self.last
        if last is not None and last[0] is query:
            return last[1]
        self.last = last = None  # given back before the next one is made
        both = query.new_empty((len(query), 2 * self.width), dtype=torch.float16)
        _split(query, both[:, self.width :], both[:, : self.width])
        self.last = (query, both)
        return both


def halved(rows: Tensor) -> HalvedRows | None:
    """`rows` (n, d) for faster products, where that pays and memory holds as much again."""
    if not pays(rows):
        return None
    try:
        return HalvedRows(rows)
    except torch.cuda.OutOfMemoryError:
        return None


def pays(rows: Tensor) -> bool:
    """Whether products with `rows` (n, d) are worth halving it: large, float32, on an NVIDIA GPU from Ampere on."""
    return (
        rows.dtype == torch.float32
        and rows.numel() >= LEAST
        and rows.device.type == "cuda"
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(rows.device) >= (8, 0)
    )


def _split(x: Tensor, rounded: Tensor, left_out: Tensor) -> None:
    rounded.copy_(x)
    left_out.copy_((x - rounded).mul_(STEP))
