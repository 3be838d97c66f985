"""Packed causal attention on an accelerator by kernels of our own (flash.py), as operators of torch.

Tokens lie one after the other, each history's together: nothing is laid into rows, padded or masked.
"""

# `custom_op` reads annotations as they stand, hence no `from __future__ import annotations`.

from typing import Any

import torch
from torch import Tensor

BLOCK = 64  # tokens of a tile along both axes
WIDTHS = (16, 32, 64, 128)  # of a head
LAUNCH = {"num_warps": 4, "num_stages": 1}  # of 32 to 128 tokens and 2 to 8 warps the fastest on an H100


@torch.library.custom_op("hllm::packed_attention", mutates_args=())
def packed_attention(
    qkv: Tensor,
    bounds: Tensor,
    by_distance: Tensor | None,
    by_gap: Tensor | None,
    seconds: Tensor | None,
    log_step: float,
    divisor: float,
) -> tuple[Tensor, Tensor]:
    """Attention of every token to itself and the earlier ones of its own history: (T, H, D), and what backward needs.

    qkv          (T, 3, H, D), D one of `WIDTHS`: queries, keys and values; values, queries and keys where `divisor`
                 is not 0
    bounds       int32 (2, T): where each token's history begins and ends among the T
    by_distance  (H, L) added to the scores by the distance i - j, which is below L everywhere
    by_gap       (H, K) added by the bucket min(log(gap) / log_step, K - 1) of the time between two events, from
                 `seconds` int64 (T,)
    divisor      0: softmax over the scores q k / sqrt(D) + biases. Else the weights are SiLU(q k + biases) / divisor

    Accumulated in float32. Differentiable in qkv and both tables; the same inputs give the same bits.
    """
    from hllm.kernels import flash

    qkv = _dense(qkv)
    t, _, n_heads, width = qkv.shape
    out = qkv.new_empty((t, n_heads, width))
    lse = qkv.new_empty((n_heads, 0 if divisor else t), dtype=torch.float32)
    with _on(qkv):
        flash.forward[(-(-t // BLOCK), n_heads)](
            *_parts(qkv, divisor), by_distance, by_gap, seconds, bounds[0], out, lse,
            *_sizes(qkv, by_distance, divisor), **_kinds(qkv, by_distance, by_gap, log_step, divisor), **LAUNCH,
        )  # fmt: skip
    return out, lse


@torch.library.custom_op("hllm::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    grad: Tensor,
    qkv: Tensor,
    bounds: Tensor,
    by_distance: Tensor | None,
    by_gap: Tensor | None,
    seconds: Tensor | None,
    out: Tensor,
    lse: Tensor,
    log_step: float,
    divisor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv (T, 3, H, D) and, float32, of both tables; of size 0 for a table that there is not."""
    from hllm.kernels import flash

    qkv, grad = _dense(qkv), grad.contiguous()
    t, _, n_heads, width = qkv.shape
    n = -(-t // BLOCK)
    length = 0 if by_distance is None else by_distance.shape[1]
    buckets = 0 if by_gap is None else by_gap.shape[1]
    grad_qkv = qkv.new_empty((t, 3, n_heads, width))
    grad_q, grad_k, grad_v = _parts(grad_qkv, divisor)
    delta = torch.empty_like(lse)
    distances = lse.new_zeros((n, n_heads, length))  # of each program; summed over programs at the end
    gaps = lse.new_empty((n, n_heads, buckets))
    given = (*_parts(qkv, divisor), by_distance, by_gap, seconds, bounds[0])
    sizes, kinds = _sizes(qkv, by_distance, divisor), _kinds(qkv, by_distance, by_gap, log_step, divisor)
    with _on(qkv):
        flash.backward_queries[(n, n_heads)](
            *given, out, lse, grad, delta, grad_q, distances, gaps, *sizes, **kinds,
            SLOTS=1 << max(0, buckets - 1).bit_length(), **LAUNCH,
        )  # fmt: skip
        flash.backward_keys[(n, n_heads)](
            *given, bounds[1], lse, grad, delta, grad_k, grad_v, *sizes, **kinds, **LAUNCH
        )
    return grad_qkv, distances.sum(0), gaps.sum(0)


@packed_attention.register_fake
def _(qkv, bounds, by_distance, by_gap, seconds, log_step, divisor):  # type: ignore[no-untyped-def]
    t, _, n_heads, width = qkv.shape
    lse = qkv.new_empty((n_heads, 0 if divisor else t), dtype=torch.float32)
    return qkv.new_empty((t, n_heads, width)), lse


@packed_attention_backward.register_fake
def _(grad, qkv, bounds, by_distance, by_gap, seconds, out, lse, log_step, divisor):  # type: ignore[no-untyped-def]
    n_heads = qkv.shape[2]
    tables = (lse.new_empty((n_heads, 0 if x is None else x.shape[1])) for x in (by_distance, by_gap))
    return qkv.new_empty(tuple(qkv.shape)), *tables


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    qkv, bounds, by_distance, by_gap, seconds, ctx.log_step, ctx.divisor = inputs
    ctx.save_for_backward(qkv, bounds, by_distance, by_gap, seconds, *output)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    qkv, bounds, by_distance, by_gap, seconds, out, lse = ctx.saved_tensors
    grad_qkv, distances, gaps = packed_attention_backward(
        grad, qkv, bounds, by_distance, by_gap, seconds, out, lse, ctx.log_step, ctx.divisor
    )
    distances = None if by_distance is None else distances.to(by_distance.dtype)
    gaps = None if by_gap is None else gaps.to(by_gap.dtype)
    return grad_qkv, None, distances, gaps, None, None, None


packed_attention.register_autograd(_backward, setup_context=_save)


def _dense(qkv: Tensor) -> Tensor:
    """`qkv` with everything of a token in one piece."""
    _, _, n_heads, width = qkv.shape
    return qkv if qkv.stride()[1:] == (n_heads * width, width, 1) else qkv.contiguous()


def _parts(qkv: Tensor, divisor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    a, b, c = qkv.unbind(1)
    return (b, c, a) if divisor else (a, b, c)


def _sizes(qkv: Tensor, by_distance: Tensor | None, divisor: float) -> tuple[Any, ...]:
    t, _, _, width = qkv.shape
    length = 0 if by_distance is None else by_distance.shape[1]
    return t, length, qkv.stride(0), 1.0 if divisor else width**-0.5, 1 / divisor if divisor else 0.0


def _kinds(
    qkv: Tensor, by_distance: Tensor | None, by_gap: Tensor | None, log_step: float, divisor: float
) -> dict[str, Any]:
    _, _, n_heads, width = qkv.shape
    return {
        "H": n_heads,
        "D": width,
        "B": BLOCK,
        "SOFTMAX": not divisor,
        "BY_DISTANCE": by_distance is not None,
        "BY_TIME": by_gap is not None,
        "LOG_STEP": log_step,
        "N_BUCKETS": 0 if by_gap is None else by_gap.shape[1],
        "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32",  # of float32 operands alone
    }


def _on(x: Tensor) -> torch.cuda.device:
    """The device of `x` as the current one, which Triton launches on."""
    return torch.cuda.device(x.device if x.is_cuda else -1)
