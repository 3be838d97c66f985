"""The training objective that a configuration names, as one function."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from hllm.losses.config import ObjectiveConfig
from hllm.losses.cross_entropy import cross_entropy
from hllm.losses.in_batch import in_batch
from hllm.losses.sampled import history_keys, sampled_softmax
from hllm.packing import Batch, Events, ItemView, segment_ids


class Objective(Protocol):
    """queries (T, w), classes (C, w), the batch and its view -> loss (), the sum over the batch's targets divided by
    `batch.n_targets`, or by their own number where that is None."""

    def __call__(self, queries: Tensor, classes: Tensor, batch: Batch, view: ItemView) -> Tensor: ...


def make_objective(config: ObjectiveConfig, history: Tensor | None = None) -> Objective:
    """The loss that `config` asks for.

    history  int64 (N,) `history_keys` of users' dataset rows and tokens, for a loss that `masks_history`: what is no
             negative for whom; None: the batch's own inputs
    """
    if config.loss in ("cross_entropy", "nce"):

        def full(queries: Tensor, classes: Tensor, batch: Batch, view: ItemView) -> Tensor:
            if config.loss_temperature != 1:
                queries = queries / config.loss_temperature
            return cross_entropy(
                queries, classes, view.targets, config.label_smoothing, count=batch.n_targets
            )

        return full

    def with_negatives(queries: Tensor, classes: Tensor, batch: Batch, view: ItemView) -> Tensor:
        users = users_of_tokens(batch)
        events = view.everyone or Events(users, view.inputs, view.targets)
        seen = history
        if seen is None and masks_history(config):
            seen = history_keys(events.users, view.tokens[events.inputs])
        queries = queries / config.loss_temperature
        if config.loss == "in_batch":
            return in_batch(
                queries,
                classes,
                view.targets,
                users,
                n_negatives=config.n_negatives,
                log_q=view.log_q,
                seen=seen,
                tokens=view.tokens,
                count=batch.n_targets,
                drop_similar=config.drop_similar,
                columns=events.targets,
                column_users=events.users,
            )
        assert view.negatives is not None
        return sampled_softmax(
            queries,
            classes,
            view.targets,
            view.negatives,
            log_q=view.log_q,
            users=users,
            seen=seen,
            tokens=view.tokens,
            count=batch.n_targets,
            drop_similar=config.drop_similar,
        )

    return with_negatives


def masks_history(config: ObjectiveConfig) -> bool:
    """Whether what a user has in its history is no negative for it."""
    hard = config.loss == "sampled" and config.negatives_by == "hard"
    return hard or (config.mask_history and config.loss in ("in_batch", "sampled"))


def users_of_tokens(batch: Batch) -> Tensor:
    """User int64 (T,) of every position of the batch, -1 for left-over positions of a padded batch.

    Where attention's rows are planned they say it: the offsets of a padded batch leave no room for those.
    """
    if batch.rows is None:
        return batch.users[segment_ids(batch.offsets, batch.n_tokens)]
    segments = batch.rows.segments.flatten()[batch.rows.slots]
    return torch.where(segments < 0, -1, batch.users[segments.clamp(min=0)])
