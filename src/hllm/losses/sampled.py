"""Softmax over the target and a shared set of negatives, in chunks of tokens.

The form that in-batch negatives (in_batch.py) and drawn negatives have in common: every position
competes with the same K columns, less those that are its own item.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hllm.losses.cross_entropy import CHUNK_LOGITS, divisor, matmul_wide, slices
from hllm.packing import ItemView

KEYS = 1 << 31  # above every token: a user and an item as one number


def sampled_softmax(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    columns: Tensor,
    *,
    log_q: Tensor | None = None,
    users: Tensor | None = None,
    column_users: Tensor | None = None,
    seen: Tensor | None = None,
    tokens: Tensor | None = None,
    chunk: int | None = None,
    count: Tensor | None = None,
    drop_similar: float | None = None,
) -> Tensor:
    """Mean cross entropy of each position's target against the negatives `columns`.

    queries (T, d) and items (M, d), float32 or float64, items also bfloat16, as their gradient then is;
    targets int64 (T,) rows of `items`, -1 = nothing to predict; columns int64 (K,) rows of `items`, -1 = an empty
    column. A negative that is the position's own target is left out by identity (protocol.md, "Negatives"), so
    equal vectors of different items still compete: when all vectors collapse, the loss is log(1 + K).

    log_q         (M,) log probability of each item to be a negative, taken off its scores, the
                  target's too (Bengio and Senecal, 2008; Yi et al., 2019); None: no correction
    users         int64 (T,) user of each position; needed by the next two
    column_users  int64 (K,): no column counts against a position of its own user
    seen          int64 (N,), sorted, from `history_keys`: nor does an item of the user's history
    tokens        int64 (M,): the items' names in `seen`; None: their rows
    drop_similar  nor does one whose cosine to the position's target is greater (ByteDance's HLLM, .99). When
                  all vectors collapse nothing is left to compete, and the loss is 0
    count         scalar tensor, as in `cross_entropy`: targets of the whole batch; None: those here

    Under autocast matrix products take bf16 operands with float32 accumulators. At most `chunk`
    positions' scores exist at a time. Products cost T x K x d whatever M is; only the gradient of
    `items` has M rows, so pass the batch's own items where the catalogue is large.
    """
    if chunk is None:
        chunk = max(1, CHUNK_LOGITS // max(1, columns.shape[0]))
    assert log_q is None or log_q.shape == items.shape[:1], "log_q has one entry for each row of items"
    names = columns if tokens is None else tokens[columns.clamp(min=0)]
    return _SampledSoftmax.apply(
        queries, items, targets, columns, log_q, users, column_users, seen, names, chunk, count, drop_similar
    )


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        queries,
        items,
        targets,
        columns,
        log_q,
        users,
        column_users,
        seen,
        names,
        chunk,
        count,
        drop_similar,
    ):
        device, wide = queries.device.type, queries.dtype
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else wide
        grad_queries, total = torch.empty_like(queries), queries.new_zeros(())
        grad_items = torch.zeros_like(items) if ctx.needs_input_grad[1] else None
        column_rows = columns.clamp(min=0)
        negatives = items[column_rows].to(narrow)  # (K, d)
        count = divisor(targets, count)
        grad_negatives, grad_own = queries.new_zeros(negatives.shape), torch.empty_like(queries)
        with torch.autocast(device, enabled=False):
            for part in slices(queries.shape[0], chunk):
                q, t = queries[part].to(narrow), targets[part].clamp(min=0)
                valid = (targets[part] >= 0).to(wide)  # (C,)
                own = items[t].to(narrow).to(wide)  # (C, d)
                scores = matmul_wide(q, negatives.T, wide)  # (C, K)
                hit = (q.to(wide) * own).sum(1)
                if log_q is not None:
                    scores -= log_q[column_rows]
                    hit = hit - log_q[t]
                row_users = None if users is None else users[part]
                out = left_out(t, columns, row_users, column_users, seen, names)
                if drop_similar is not None:
                    out |= too_similar(own, negatives, drop_similar)
                scores.masked_fill_(out, float("-inf"))
                log_norm = torch.logaddexp(hit, torch.logsumexp(scores, dim=1))
                total += (log_norm - hit) @ valid
                # d loss / d scores = softmax, less one for the target; reuses the scores' memory.
                grad = scores.sub_(log_norm.unsqueeze(1)).exp_().mul_(valid.unsqueeze(1)).to(narrow)
                grad_hit = (((hit - log_norm).exp() - 1) * valid).unsqueeze(1)  # (C, 1)
                grad_queries[part] = matmul_wide(grad, negatives, wide) + grad_hit * own
                if grad_items is not None:
                    grad_negatives += matmul_wide(grad.T, q, wide)
                    grad_own[part] = grad_hit * q.to(wide)
                del scores, grad  # before the next chunk is made
            if grad_items is not None:
                rows = torch.cat((targets.clamp(min=0), column_rows))
                add_rows(grad_items, rows, torch.cat((grad_own, grad_negatives)) / count)
        ctx.save_for_backward(grad_queries, grad_items, count)
        return total / count

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad_queries, grad_items, count = ctx.saved_tensors
        grad_items = None if grad_items is None else grad_items * grad
        return (grad_queries * (grad / count), grad_items) + (None,) * 10


def add_rows(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add `values` (n, d) to the rows int64 (n,) of `table` (M, d), which, where it is narrower, rounds their sum."""
    if table.dtype == values.dtype:
        table.index_add_(0, rows, values)
        return
    distinct, place = rows.unique(return_inverse=True)
    total = table[distinct].to(values.dtype).index_add_(0, place, values)
    table[distinct] = total.to(table.dtype)


def too_similar(targets: Tensor, negatives: Tensor, limit: float) -> Tensor:
    """bool (C, K): the cosine of a target (C, d) and a negative (K, d) is greater than `limit`."""
    unit = F.normalize(targets.float(), dim=1)
    return unit @ F.normalize(negatives.float(), dim=1).T > limit


def similar_share(classes: Tensor, view: ItemView, limit: float, rows: int = 512) -> float:
    """Share of the view's drawn negatives, other items than the target, that `drop_similar` leaves out, over its
    first `rows` targets. `classes` (M, d) are the vectors of the view's items."""
    targets = view.targets[view.targets >= 0][:rows]
    columns = targets if view.negatives is None else view.negatives
    others = targets.unsqueeze(1) != columns.unsqueeze(0)
    if not bool(others.any()):
        return 0.0
    dropped = too_similar(classes[targets], classes[columns], limit) & others
    return float(dropped.sum() / others.sum())


def left_out(
    targets: Tensor,
    columns: Tensor,
    users: Tensor | None,
    column_users: Tensor | None,
    seen: Tensor | None,
    names: Tensor,
) -> Tensor:
    """bool (C, K): column k, the item `names` (K,) calls so in `seen`, is no negative for position i.

    See `sampled_softmax`; targets are (C,) rows.
    """
    out = (columns < 0).unsqueeze(0) | (targets.unsqueeze(1) == columns.unsqueeze(0))
    if column_users is not None:
        assert users is not None
        out |= users.unsqueeze(1) == column_users.unsqueeze(0)
    if seen is not None:
        assert users is not None
        if users.is_cuda:
            out |= was_seen(users, names, seen)
        else:  # once for each user; a GPU would have to wait to hear how many there are
            distinct, place = users.unique(return_inverse=True)
            out |= was_seen(distinct, names, seen)[place]
    return out


def was_seen(users: Tensor, names: Tensor, seen: Tensor) -> Tensor:
    """bool (n, K): the pair of user int64 (n,) and item int64 (K,) is among `seen`."""
    keys = users.unsqueeze(1) * KEYS + names.clamp(min=0).unsqueeze(0)
    return seen[torch.searchsorted(seen, keys).clamp(max=seen.shape[0] - 1)] == keys


def history_keys(users: Tensor, names: Tensor) -> Tensor:
    """Sorted keys int64 (T,) of pairs of user and item (T,), in which `was_seen` looks them up."""
    return (users.long() * KEYS + names).sort().values


def draw(cdf: Tensor, n: int) -> Tensor:
    """`n` rows int64 (n,) drawn with replacement; `cdf` float64 (M,) is the running sum of their probabilities.

    One uniform number each, looked up: works inside a captured CUDA graph, where multinomial does not.
    """
    at = torch.rand(n, dtype=torch.float64, device=cdf.device) * cdf[-1]
    return torch.searchsorted(cdf, at, right=True).clamp(max=cdf.shape[0] - 1)
