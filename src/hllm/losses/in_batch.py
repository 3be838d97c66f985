"""In-batch negatives: what other users of the batch went on to is what this one did not."""

from __future__ import annotations

import torch
from torch import Tensor

from hllm.losses.sampled import sampled_softmax


def in_batch(
    queries: Tensor,
    items: Tensor,
    targets: Tensor,
    users: Tensor,
    *,
    n_negatives: int | None = None,
    log_q: Tensor | None = None,
    seen: Tensor | None = None,
    tokens: Tensor | None = None,
    chunk: int | None = None,
    count: Tensor | None = None,
    drop_similar: float | None = None,
    columns: Tensor | None = None,
    column_users: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of each target against the targets of other users of the batch.

    queries (T, d), items (M, d), targets int64 (T,) rows of `items` or -1, users int64 (T,). The
    negatives are the batch's targets as often as they occur there; the position's own item never
    is one, nor any target of its own user (protocol.md, "Negatives"). So popular items are
    negatives more often, which `log_q` (M,), the log of their share of training events, corrects
    for (Yi et al., 2019). `seen`, `tokens`, `count` and `drop_similar` as in `sampled_softmax`.

    columns, column_users  targets int64 (E,) of a whole batch and their users, where `targets` are a rank's part
                  of it; None: those here
    n_negatives   take at most so many targets, drawn evenly anew each time; None: all T of them,
                  at a cost of T * T scores
    """
    if columns is None or column_users is None:
        columns, column_users = targets, users
    if n_negatives is not None and n_negatives < columns.shape[0]:
        # Positions without target sort last; a fixed number is taken, so that shapes repeat.
        order = torch.rand(columns.shape[0], device=columns.device) + 2.0 * (columns < 0)
        chosen = order.topk(n_negatives, largest=False, sorted=False).indices
        columns, column_users = columns[chosen], column_users[chosen]
    return sampled_softmax(
        queries,
        items,
        targets,
        columns,
        log_q=log_q,
        users=users,
        column_users=column_users,
        seen=seen,
        tokens=tokens,
        chunk=chunk,
        count=count,
        drop_similar=drop_similar,
    )
