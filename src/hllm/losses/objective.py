"""The training objective that a configuration names, as one function."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hllm.config import Config
from hllm.losses.cross_entropy import cross_entropy
from hllm.losses.in_batch import in_batch
from hllm.losses.sampled import draw, history_keys, sampled_softmax
from hllm.packing import Batch, segment_ids

DRAWN = 512  # negatives a step where the configuration leaves their number open


class Objective(Protocol):
    """queries (T, d), items (M, d), targets int64 (T,) rows of items or -1, the batch, and each
    token's row among the items int64 (n + 1,) -> loss ()."""

    def __call__(
        self, queries: Tensor, items: Tensor, targets: Tensor, batch: Batch, item_rows: Tensor
    ) -> Tensor: ...


def make_objective(config: Config, counts: Tensor) -> Objective:
    """The loss that `config` asks for; `counts` int64 (M,) training events of each item of the loss."""
    if config.objective.loss in ("cross_entropy", "nce"):

        def full(queries: Tensor, items: Tensor, targets: Tensor, batch: Batch, item_rows: Tensor) -> Tensor:
            scaled = queries / config.objective.loss_temperature
            return cross_entropy(scaled, items, targets, config.objective.label_smoothing)

        return full

    share = counts.double() / counts.sum()
    if config.objective.loss == "sampled" and config.objective.negatives_by == "uniform":
        share = torch.full_like(share, 1 / len(share))
    log_q = share.log().float() if config.objective.logq else None
    cdf = share.cumsum(0)

    def with_negatives(
        queries: Tensor, items: Tensor, targets: Tensor, batch: Batch, item_rows: Tensor
    ) -> Tensor:
        users = users_of_tokens(batch)
        seen = (
            history_keys(users, item_rows[batch.tokens], len(items))
            if config.objective.mask_history
            else None
        )
        queries = queries / config.objective.loss_temperature
        if config.objective.loss == "in_batch":
            return in_batch(
                queries,
                items,
                targets,
                users,
                n_negatives=config.objective.n_negatives,
                log_q=log_q,
                seen=seen,
            )
        columns = draw(cdf, config.objective.n_negatives or DRAWN)
        return sampled_softmax(queries, items, targets, columns, log_q=log_q, users=users, seen=seen)

    return with_negatives


def users_of_tokens(batch: Batch) -> Tensor:
    """User int64 (T,) of every position of the batch, -1 for left-over positions of a captured step.

    Where attention's rows are planned they say it (`offsets` are not kept up in a captured step).
    """
    if batch.rows is None:
        return batch.users[segment_ids(batch.offsets, batch.n_tokens)]
    segments = batch.rows.segments.flatten()[batch.rows.slots]
    return torch.where(segments < 0, -1, batch.users[segments.clamp(min=0)])
