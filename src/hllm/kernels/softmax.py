"""Softmax cross entropy and its gradient in one look at the logits, by a Triton kernel."""
# mypy: ignore-errors

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def softmax_gradient(
    logits: Tensor, targets: Tensor, smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Loss float32 (C,) of each row of `logits` float32 (C, M), and its gradient (C, M) in `dtype`.

    targets int64 (C,), -1 where there is none: loss and gradient are then 0. The target's part is 1 - `smoothing`;
    what smoothing adds for all items alike is the caller's affair (losses/cross_entropy.py).
    """
    c, m = logits.shape
    grad = torch.empty((c, m), dtype=dtype, device=logits.device)
    loss = torch.empty(c, dtype=torch.float32, device=logits.device)
    width = triton.next_power_of_2(m)
    with torch.cuda.device(logits.device if logits.is_cuda else -1):
        _kernel[(c,)](
            logits,
            targets,
            grad,
            loss,
            m,
            1 - smoothing,
            WIDTH=width,
            num_warps=min(32, max(4, width // 1024)),
        )
    return loss, grad


@triton.jit(do_not_specialize=["kept"])
def _kernel(logits_ptr, targets_ptr, grad_ptr, loss_ptr, M, kept, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    at = row.to(tl.int64) * M
    logits = tl.load(logits_ptr + at + column, mask=column < M, other=float("-inf"))
    target = tl.load(targets_ptr + row)
    hit = tl.load(logits_ptr + at + tl.maximum(target, 0))
    peak = tl.max(logits, 0)
    grad = tl.exp(logits - peak)
    norm = tl.sum(grad, 0)
    loss = peak + tl.log(norm) - kept * hit
    grad = grad / norm - tl.where(column == target, kept, 0.0)
    grad = tl.where(target >= 0, grad, 0.0)
    tl.store(grad_ptr + at + column, grad.to(grad_ptr.dtype.element_ty), mask=column < M)
    tl.store(loss_ptr + row, tl.where(target >= 0, loss, 0.0))
