"""Baselines that go by time alone: what was popular of late, and what a user had last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hllm.baselines.lookup import columns_of
from hllm.packing import pad, segment_ids

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.packing import Batch


class RecentPopularity(nn.Module):
    """score(item): its training events among the latest `share` of all, items with as many by their events in all.

    Scores count up from 0, the same for items that agree in both.
    """

    scores: Tensor  # float32 (n,)

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("scores", torch.zeros(1))

    def fit(self, dataset: Dataset) -> RecentPopularity:
        """Count training events from the time on that leaves `share` of them; those at that very time count too."""
        histories, counts = dataset.train_histories(), dataset.train_counts()
        times = np.asarray(histories.times)
        since = np.quantile(times, 1 - self.share, method="lower") if len(times) else 0
        recent = np.bincount(np.asarray(histories.tokens)[times >= since], minlength=len(counts))
        both = recent.astype(np.int64) * (int(counts.max(initial=0)) + 1) + counts
        scores = np.unique(both, return_inverse=True)[1]
        self.scores = torch.from_numpy(scores).float().to(self.scores.device)
        return self

    def query(self, batch: Batch) -> Tensor:
        """Nothing of a user is needed: (U, 0)."""
        return self.scores.new_zeros((batch.n_users, 0))

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m), the same in every row."""
        return self.scores[tokens].expand(query.shape[0], -1)


class RepeatLast(nn.Module):
    """What a user had last comes again: score 1 + 1 / (events since, the item's own counted), at most 2.

    An item that is new to the user scores its share of the training events, so that with seen items filtered this
    is popularity.
    """

    share: Tensor  # float32 (n,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(1))

    def fit(self, dataset: Dataset) -> RepeatLast:
        """Count training events, for items that are new to a user."""
        counts = dataset.train_counts()
        self.share = torch.from_numpy(counts / max(1, counts.sum())).float().to(self.share.device)
        return self

    def query(self, batch: Batch) -> Tensor:
        """The tokens int64 (U, L) of each history, latest first, and zeros."""
        user, offsets = segment_ids(batch.offsets, batch.n_tokens), batch.offsets.long()
        turned = offsets[user] + offsets[user + 1] - 1 - torch.arange(batch.n_tokens, device=user.device)
        return pad(batch.tokens[turned], batch.offsets)

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m)."""
        u, m = len(query), len(tokens)
        column = columns_of(tokens, len(self.share))
        column[0] = m  # padding, whoever asks for it
        scores = torch.cat((self.share[tokens], self.share.new_zeros(1))).repeat(u, 1)
        again = 1 + 1 / (1 + torch.arange(query.shape[1], device=query.device, dtype=scores.dtype))
        scores.scatter_reduce_(1, column[query], again.expand(u, -1), "amax")
        return scores[:, :m]
