"""The gated block's token-wise parts with a backward of their own, for training on a CPU.

Written as modules (block.py), a block reads and writes (T, d) and (T, 2 hidden) tensors some sixty times forward and
backward, which a CPU's caches don't hold. Here about a thousand tokens at a time go through all of it, and what is kept
for backward is what cannot be made again cheaply. Same formulas, same random numbers; sums in another order.

    normalised  RMSNorm(x)
    project   x -> h = RMSNorm(x) -> h Q (queries, keys, values), h G + b (logits of the gate)
    rejoin    x + dropout(sigmoid(logits) * (mixed O))
    ffn       x + dropout(sigmoid(h G + b) * (SiLU(h U) * (h V)) D), h = RMSNorm(x)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1024  # tokens at a time: small enough for a cache, large enough for the products


def by_hand(x: Tensor) -> bool:
    """Whether these forms are to be used: where a graph is made on a CPU, without autocast."""
    return (
        x.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
    )


def normalised(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMSNorm of x (T, d)."""
    return _Normalise.apply(x, norm.weight, _eps(norm, x))


def project(x: Tensor, norm: nn.RMSNorm, qkv: nn.Linear, gate: nn.Linear) -> tuple[Tensor, Tensor]:
    """Queries, keys and values (T, 3 d) and the gate's logits (T, d) of x (T, d)."""
    return _Project.apply(x, norm.weight, qkv.weight, gate.weight, gate.bias, _eps(norm, x))


def rejoin(x: Tensor, logits: Tensor, mixed: Tensor, out: nn.Linear, kept: Tensor | None) -> Tensor:
    """x (T, d) and the gated branch whose attention gave `mixed` (T, d); `kept` (T, d): dropout's factors, if any."""
    return _Rejoin.apply(x, logits, mixed, out.weight, kept)


def ffn(
    x: Tensor, norm: nn.RMSNorm, up: nn.Linear, down: nn.Linear, gate: nn.Linear, kept: Tensor | None
) -> Tensor:
    """x (T, d) and the gated feed-forward branch."""
    return _FeedForward.apply(
        x, norm.weight, up.weight, down.weight, gate.weight, gate.bias, kept, _eps(norm, x)
    )


def _eps(norm: nn.RMSNorm, x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if norm.eps is None else norm.eps


def _chunks(t: int) -> Iterator[slice]:
    return (slice(first, min(first + CHUNK, t)) for first in range(0, t, CHUNK))


def _norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x over its root mean square (C, d), and 1 over that (C, 1)."""
    scale = torch.linalg.vector_norm(x, dim=1, keepdim=True).square_().div_(x.shape[1]).add_(eps).rsqrt_()
    return x * scale, scale


def _norm_backward(grad: Tensor, unit: Tensor, scale: Tensor, weight: Tensor, grad_weight: Tensor) -> Tensor:
    """Gradient (C, d) at the norm's input of `grad` (C, d) at its output, whose memory it takes."""
    grad_weight += (grad * unit).sum(0)
    grad *= weight
    along = (grad * unit).mean(1, keepdim=True)
    return grad.addcmul_(unit, along, value=-1).mul_(scale)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        out = torch.empty_like(x)
        for c in _chunks(x.shape[0]):
            torch.mul(_norm(x[c], eps)[0], weight, out=out[c])
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.zeros_like(weight)
        for c in _chunks(x.shape[0]):
            unit, scale = _norm(x[c], ctx.eps)
            grad_x[c] = _norm_backward(grad[c].clone(), unit, scale, weight, grad_weight)
        return grad_x, grad_weight, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, qkv, gate, bias, eps):  # type: ignore[no-untyped-def]
        t = x.shape[0]
        out, logits = x.new_empty(t, qkv.shape[0]), x.new_empty(t, gate.shape[0])
        for c in _chunks(t):
            h = _norm(x[c], eps)[0].mul_(weight)
            torch.mm(h, qkv.T, out=out[c])
            torch.addmm(bias, h, gate.T, out=logits[c])
        ctx.save_for_backward(x, weight, qkv, gate)
        ctx.eps = eps
        return out, logits

    @staticmethod
    def backward(ctx, grad_out, grad_logits):  # type: ignore[no-untyped-def]
        x, weight, qkv, gate = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weight, grad_qkv, grad_gate = (torch.zeros_like(w) for w in (weight, qkv, gate))
        for c in _chunks(x.shape[0]):
            unit, scale = _norm(x[c], ctx.eps)
            h = unit * weight
            grad_qkv.addmm_(grad_out[c].T, h)
            grad_gate.addmm_(grad_logits[c].T, h)
            grad_h = torch.mm(grad_out[c], qkv, out=h).addmm_(grad_logits[c], gate)
            grad_x[c] = _norm_backward(grad_h, unit, scale, weight, grad_weight)
        return grad_x, grad_weight, grad_qkv, grad_gate, grad_logits.sum(0), None


class _Rejoin(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, logits, mixed, out, kept):  # type: ignore[no-untyped-def]
        result = torch.empty_like(x)
        at_branch, at_logits = torch.empty_like(x), torch.empty_like(x)
        for c in _chunks(x.shape[0]):
            into = result[c], at_branch[c], at_logits[c]
            _join(x[c], logits[c], mixed[c] @ out.T, None if kept is None else kept[c], into)
        ctx.save_for_backward(mixed, out, at_branch, at_logits)
        return result

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        mixed, out, at_branch, at_logits = ctx.saved_tensors
        grad_mixed, grad_logits, grad_out = (
            torch.empty_like(mixed),
            torch.empty_like(grad),
            torch.zeros_like(out),
        )
        for c in _chunks(grad.shape[0]):
            grad_branch = grad[c] * at_branch[c]
            grad_out.addmm_(grad_branch.T, mixed[c])
            torch.mm(grad_branch, out, out=grad_mixed[c])
            torch.mul(grad[c], at_logits[c], out=grad_logits[c])
        return grad, grad_logits, grad_mixed, grad_out, None


def _join(
    x: Tensor, logits: Tensor, branch: Tensor, kept: Tensor | None, out: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Into `out`: x + kept * sigmoid(logits) * branch, and its derivatives by `branch` and by `logits`, all (C, d)."""
    result, at_branch, at_logits = out
    share = torch.sigmoid(logits)
    if kept is None:
        at_branch.copy_(share)
    else:
        torch.mul(share, kept, out=at_branch)
    branch *= at_branch
    torch.add(x, branch, out=result)
    torch.mul(branch, share.neg_().add_(1), out=at_logits)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, up, down, gate, bias, kept, eps):  # type: ignore[no-untyped-def]
        t, hidden = x.shape[0], down.shape[1]
        opened, value = (
            x.new_empty(t, hidden),
            x.new_empty(t, hidden),
        )  # apart: neighbours in memory are used together
        result, at_branch, at_logits = (torch.empty_like(x) for _ in range(3))
        for c in _chunks(t):
            h = _norm(x[c], eps)[0].mul_(weight)
            torch.mm(h, up[:hidden].T, out=opened[c])
            torch.mm(h, up[hidden:].T, out=value[c])
            _join(
                x[c],
                torch.addmm(bias, h, gate.T),
                F.silu(opened[c]).mul_(value[c]) @ down.T,
                None if kept is None else kept[c],
                (result[c], at_branch[c], at_logits[c]),
            )
        ctx.save_for_backward(x, weight, up, down, gate, opened, value, at_branch, at_logits)
        ctx.eps = eps
        return result

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, up, down, gate, opened, value, at_branch, at_logits = ctx.saved_tensors
        hidden = down.shape[1]
        grad_x, grad_bias = torch.empty_like(x), torch.zeros_like(weight)
        grad_weight, grad_up, grad_down, grad_gate = (torch.zeros_like(w) for w in (weight, up, down, gate))
        for c in _chunks(x.shape[0]):
            grad_branch, grad_logits = grad[c] * at_branch[c], grad[c] * at_logits[c]
            act = F.silu(opened[c])
            grad_act = grad_branch @ down
            grad_value = grad_act * act
            grad_down.addmm_(grad_branch.T, act.mul_(value[c]))
            grad_opened = torch.ops.aten.silu_backward(grad_act.mul_(value[c]), opened[c])
            unit, scale = _norm(x[c], ctx.eps)
            h = unit * weight
            grad_up[:hidden].addmm_(grad_opened.T, h)
            grad_up[hidden:].addmm_(grad_value.T, h)
            grad_gate.addmm_(grad_logits.T, h)
            grad_bias += grad_logits.sum(0)
            grad_h = torch.mm(grad_opened, up[:hidden], out=h)
            grad_h.addmm_(grad_value, up[hidden:]).addmm_(grad_logits, gate)
            torch.add(grad[c], _norm_backward(grad_h, unit, scale, weight, grad_weight), out=grad_x[c])
        return grad_x, grad_weight, grad_up, grad_down, grad_gate, grad_bias, None, None
