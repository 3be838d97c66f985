"""Full cross entropy over the training items, in chunks of tokens.

The logits of one chunk are made, used for the loss and for both gradients, and dropped. So the
largest float32 tensor is one chunk of logits, whatever the batch; and each logit is computed
once, not twice (the loss is a scalar: its gradients only scale with what arrives in backward).
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_LOGITS = 1 << 25  # logits held at once: 128 MiB in float32


def cross_entropy(
    queries: Tensor, items: Tensor, targets: Tensor, label_smoothing: float = 0.0, chunk: int | None = None
) -> Tensor:
    """Mean, over the positions that have a target, of the cross entropy of `queries @ items.T`.

    queries (T, d) and items (M, d), float32 or float64; targets int64 (T,) rows of `items`, -1
    where there is nothing to predict (such positions get no loss and no gradient).
    Label smoothing spreads its share evenly over all M items, as torch's does. Under autocast the
    matrix products take bf16 operands with float32 accumulators. `chunk` = positions per chunk.
    """
    if chunk is None:
        chunk = max(1, CHUNK_LOGITS // max(1, items.shape[0]))
    return _ChunkedCrossEntropy.apply(queries, items, targets, label_smoothing, chunk)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, queries, items, targets, smoothing, chunk):  # type: ignore[no-untyped-def]
        device = queries.device.type
        wide = queries.dtype
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide
        n, m = queries.shape[0], items.shape[0]
        item_operand = items.to(narrow)
        grad_queries = torch.empty_like(queries)
        grad_items = torch.zeros_like(items)
        total = queries.new_zeros(())
        count = (targets >= 0).sum().clamp(min=1)
        with torch.autocast(device, enabled=False):
            for first in range(0, n, chunk):
                part = slice(first, min(first + chunk, n))
                q, t = queries[part].to(narrow), targets[part].clamp(min=0)
                valid = (targets[part] >= 0).to(wide)  # (C,)
                logits = matmul_wide(q, item_operand.T, wide)  # (C, M)
                log_norm = torch.logsumexp(logits, dim=1)
                hit = logits.gather(1, t.unsqueeze(1)).squeeze(1)
                loss = log_norm - (1 - smoothing) * hit
                if smoothing:
                    loss -= smoothing * logits.mean(1)
                total += loss @ valid
                # d loss / d logits = softmax - smoothed one-hot; reuses the logits' memory.
                grad = logits.sub_(log_norm.unsqueeze(1)).exp_()
                if smoothing:
                    grad.sub_(smoothing / m)
                grad.scatter_add_(1, t.unsqueeze(1), grad.new_full((t.shape[0], 1), smoothing - 1.0))
                grad = grad.mul_(valid.unsqueeze(1)).to(narrow)
                grad_queries[part] = matmul_wide(grad, item_operand, wide)
                grad_items += matmul_wide(grad.T, q, wide)
        ctx.save_for_backward(grad_queries, grad_items, count)
        return total / count

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad_queries, grad_items, count = ctx.saved_tensors
        scale = grad / count
        return grad_queries * scale, grad_items * scale, None, None, None


def matmul_wide(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a @ b` in `dtype`, accumulated there even where a and b are narrower."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)
