"""Softmax attention one history at a time, for a CPU: scores stay in its cache, and nothing is masked or padded.

On rows, a layer writes and reads tensors (B, H, R, R) a dozen times; a history's own (H, L, L) fit a core's cache.
The few calls a history take pay where histories are not too short (`LONG`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hllm.packing import Rows

Spans = tuple[tuple[int, int], ...]

LONG = 32  # mean events of a history from which calls of its own pay
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


def attend_spans(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, spans: Spans) -> Tensor:
    """Causal attention of q, k, v (T, H, D) within each of `spans`, with `bias` (H, R, R) added to the scores."""
    future = torch.ones(bias.shape[1:], dtype=torch.bool).triu(1)
    return _SpanAttention.apply(q, k, v, bias.masked_fill(future, float("-inf")), spans)


class _SpanAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, spans):  # type: ignore[no-untyped-def]
        scale = q.shape[2] ** -0.5
        out, kept = torch.empty_like(q), []
        heads = [x.transpose(0, 1) for x in (q, k, v, out)]  # (H, T, D)
        for a, b in spans:
            qs, ks, vs, outs = (x[:, a:b] for x in heads)
            scores = torch.baddbmm(bias[:, : b - a, : b - a], qs, ks.transpose(1, 2), alpha=scale)
            weights = scores.softmax(dim=2)
            outs.copy_(torch.bmm(weights, vs))
            if any(ctx.needs_input_grad):
                kept.append(weights)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.spans, ctx.size = spans, bias.shape
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, out, *kept = ctx.saved_tensors
        scale = q.shape[2] ** -0.5
        grads = [torch.empty_like(x) for x in (q, k, v)]
        grad_bias = q.new_zeros(ctx.size)
        # d loss / d scores = weights * (d loss / d weights - its mean under the weights).
        mean = (grad * out).sum(2).T.unsqueeze(2)  # (H, T, 1)
        heads = [x.transpose(0, 1) for x in (q, k, v, grad, *grads)]
        for (a, b), weights in zip(ctx.spans, kept, strict=True):
            qs, ks, vs, gs, grad_q, grad_k, grad_v = (x[:, a:b] for x in heads)
            grad_v.copy_(torch.bmm(weights.transpose(1, 2), gs))
            grad_scores = torch.bmm(gs, vs.transpose(1, 2)).sub_(mean[:, a:b]).mul_(weights)
            grad_bias[:, : b - a, : b - a] += grad_scores
            grad_q.copy_(torch.bmm(grad_scores, ks).mul_(scale))
            grad_k.copy_(torch.bmm(grad_scores.transpose(1, 2), qs).mul_(scale))
        return *grads, grad_bias, None
