"""Softmax attention one history at a time, for a CPU: scores stay in its cache, and nothing is masked or padded.

On rows, a layer writes and reads tensors (B, H, R, R) a dozen times; a history's own (H, L, L) fit a core's cache.
The few calls a history take pay where histories are not too short (`LONG`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hllm.hardware import cpu_products
from hllm.packing import Rows

Spans = tuple[tuple[int, int], ...]

LONG = 32  # mean events of a history from which calls of its own pay
BLOCK = 128  # queries at a time
LONGEST = 1024  # events of a history whose scores fit


def make_spans(rows: Rows) -> Spans | None:
    """Where each history begins and ends among the T tokens; None where attention goes by rows."""
    if rows.slots.device.type != "cpu" or rows.order is not None or not rows.slots.numel():
        return None
    segments = rows.segments.flatten()[rows.slots]  # neighbours stay neighbours
    cuts = ((segments[1:] != segments[:-1]).nonzero().flatten() + 1).tolist()
    if len(rows.slots) < LONG * (len(cuts) + 1):
        return None
    spans = tuple(zip([0, *cuts], [*cuts, len(rows.slots)], strict=True))
    return spans if max(b - a for a, b in spans) <= LONGEST else None


def attend_spans(qkv: Tensor, bias: Tensor, spans: Spans) -> Tensor:
    """Causal attention of qkv (T, 3, H, D) within each of `spans`, with `bias` (H, R, R) added to the scores:
    (T, H, D)."""
    future = torch.ones(bias.shape[1:], dtype=torch.bool).triu(1)
    return _SpanAttention.apply(qkv, bias.masked_fill(future, float("-inf")), spans)


def _blocks(a: int, b: int) -> list[tuple[int, int]]:
    """The queries of a history [a, b), some at a time: none of them sees what follows, which is not computed."""
    return [(first, min(first + BLOCK, b)) for first in range(a, b, BLOCK)]


class _SpanAttention(torch.autograd.Function):
    @staticmethod
    @cpu_products("ieee")  # train/step.py may round operands: these products are too small to gain by it
    def forward(ctx, qkv, bias, spans):  # type: ignore[no-untyped-def]
        scale = qkv.shape[3] ** -0.5
        out, kept = torch.empty_like(qkv[:, 0]), []
        q, k, v = qkv.permute(1, 2, 0, 3)  # each (H, T, D)
        outs = out.transpose(0, 1)
        for a, b in spans:
            for i, j in _blocks(a, b):
                scores = bias[:, i - a : j - a, : j - a]
                scores = torch.baddbmm(scores, q[:, i:j], k[:, a:j].transpose(1, 2), alpha=scale)
                weights = scores.softmax(dim=2)
                outs[:, i:j] = torch.bmm(weights, v[:, a:j])
                if any(ctx.needs_input_grad):
                    kept.append(weights)
        ctx.save_for_backward(qkv, out, *kept)
        ctx.spans, ctx.size = spans, bias.shape
        return out

    @staticmethod
    @cpu_products("ieee")
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        qkv, out, *kept = ctx.saved_tensors
        scale = qkv.shape[3] ** -0.5
        grad_qkv, grad_bias = torch.empty_like(qkv), qkv.new_zeros(ctx.size)
        q, k, v = qkv.permute(1, 2, 0, 3)  # each (H, T, D)
        grad_q, grad_k, grad_v = grad_qkv.permute(1, 2, 0, 3)
        grads, outs = grad.transpose(0, 1), out.transpose(0, 1)
        for a, b in reversed(ctx.spans):
            for i, j in reversed(_blocks(a, b)):
                weights, g = kept.pop(), grads[:, i:j]
                # d loss / d scores = weights * (d loss / d weights - its mean under the weights).
                mean = (g * outs[:, i:j]).sum(2, keepdim=True)
                grad_scores = torch.bmm(g, v[:, a:j].transpose(1, 2)).sub_(mean).mul_(weights)
                grad_bias[:, i - a : j - a, : j - a] += grad_scores
                grad_q[:, i:j] = torch.bmm(grad_scores, k[:, a:j]).mul_(scale)
                at_k = torch.bmm(grad_scores.transpose(1, 2), q[:, i:j]).mul_(scale)
                at_v = torch.bmm(weights.transpose(1, 2), g)
                if j == b:  # the first to come, and all earlier events are among its keys
                    grad_k[:, a:j], grad_v[:, a:j] = at_k, at_v
                else:
                    grad_k[:, a:j] += at_k
                    grad_v[:, a:j] += at_v
        return grad_qkv, grad_bias, None
