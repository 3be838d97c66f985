"""How many scores of each row reach a floor and lie above it, in one look, by a Triton kernel."""
# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WIDTH = 4096  # scores that a program holds at once


def reaching(scores: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """How many of `scores` float32 (U, m) are at least, and how many more than, `floor` (U,): int64 (U,) each."""
    n_users, m = scores.shape
    found = torch.empty((2, n_users), dtype=torch.int64, device=scores.device)
    with torch.cuda.device(scores.device if scores.is_cuda else -1):
        _kernel[(n_users,)](scores, floor, found, m, scores.stride(0), n_users, WIDTH=WIDTH, num_warps=8)
    return found[0], found[1]


@triton.jit(do_not_specialize=["M", "USERS"])
def _kernel(scores_ptr, floor_ptr, found_ptr, M, stride, USERS, WIDTH: tl.constexpr):
    user = tl.program_id(0)
    floor = tl.load(floor_ptr + user)
    at_least = tl.zeros((WIDTH,), tl.int32)
    more = tl.zeros((WIDTH,), tl.int32)
    row = scores_ptr + user.to(tl.int64) * stride
    for first in range(0, M, WIDTH):
        column = first + tl.arange(0, WIDTH)
        inside = column < M
        scores = tl.load(row + column, mask=inside, other=0.0)
        at_least += (inside & (scores >= floor)).to(tl.int32)
        more += (inside & (scores > floor)).to(tl.int32)
    tl.store(found_ptr + user, tl.sum(at_least, 0).to(tl.int64))
    tl.store(found_ptr + USERS + user, tl.sum(more, 0).to(tl.int64))
