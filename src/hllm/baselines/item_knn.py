"""Item-based nearest neighbours (Sarwar et al., 2001): what goes with what a user has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hllm.baselines.cooccurrence import cooccurrences
from hllm.baselines.lookup import columns_of, distinct_pairs, distinct_tokens

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.packing import Batch

CHUNK = 1 << 22  # neighbours looked at at once


class ItemKNN(nn.Module):
    """score(j) = sum, over the distinct items i of a history, of cos(i, j) where j is among i's `k` nearest.

    cos(i, j) = users with both / sqrt(users with i * users with j), from training histories. Items that go with
    nothing of a history score 0.
    """

    neighbours: Tensor  # int32 (n, k): tokens
    cosines: Tensor  # float32 (n, k): 0 where there are fewer neighbours

    def __init__(self, k: int = 100) -> None:
        super().__init__()
        self.k = k
        self.register_buffer("neighbours", torch.zeros((1, 1), dtype=torch.int32))
        self.register_buffer("cosines", torch.zeros((1, 1)))

    def fit(self, dataset: Dataset) -> ItemKNN:
        """Find each item's neighbours; memory grows with n * k."""
        histories, n = dataset.train_histories(), len(dataset.train_counts())
        _, items = distinct_pairs(histories, n)
        scale = np.bincount(items, minlength=n).clip(min=1) ** -0.5  # (n,)
        k = min(self.k, n)
        neighbours, cosines = torch.zeros((n, k), dtype=torch.int32), torch.zeros((n, k))
        for first, counts in cooccurrences(histories, n):
            part = slice(first, first + len(counts))
            cosine = torch.from_numpy(counts * scale * scale[part, None]).float()
            cosine[torch.arange(len(counts)), torch.arange(first, first + len(counts))] = 0
            best = cosine.topk(k, dim=1)
            neighbours[part], cosines[part] = best.indices.int(), best.values
        device = self.cosines.device
        self.neighbours, self.cosines = neighbours.to(device), cosines.to(device)
        return self

    def query(self, batch: Batch) -> Tensor:
        """The distinct tokens int64 (U, L) of each history, and zeros."""
        return distinct_tokens(batch)

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m): summed cosines."""
        m, (n, k) = len(tokens), self.cosines.shape
        column, done = columns_of(tokens, n), []
        for part in query.split(max(1, CHUNK // max(1, query.shape[1] * k))):
            u = len(part)
            row = torch.arange(u, device=query.device).view(u, 1, 1)
            at = row * (m + 1) + column[self.neighbours[part].long()]  # (u, L, k)
            weights = self.cosines[part]
            total = weights.new_zeros(u * (m + 1)).index_add_(0, at.flatten(), weights.flatten())
            done.append(total.view(u, m + 1)[:, :m])
        return torch.cat(done) if done else self.cosines.new_zeros((0, m))
