"""First-order Markov chain: what usually comes after the last item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hllm.baselines.lookup import columns_of
from hllm.packing import lengths_of

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.packing import Batch


class Markov(nn.Module):
    """score(j | last item i) = (n_ij + weight * p_j) / (n_i + weight).

    n_ij counts how often j follows i at once in training histories, n_i all that follows i, and p_j
    is j's share of the training events. `weight` is how many observed transitions the popularity is
    worth; its main use is to order the many items that never followed i. Only transitions that occur
    are stored, so memory grows with the events and not with the square of the catalogue.
    """

    starts: Tensor  # int64 (n + 1,): transitions from item i are starts[i]:starts[i + 1]
    nexts: Tensor  # int64 (E,)
    times: Tensor  # float32 (E,)
    share: Tensor  # float32 (n,): p_j

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("starts", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("nexts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("times", torch.zeros(0))
        self.register_buffer("share", torch.zeros(1))

    def fit(self, dataset: Dataset) -> Markov:
        """Count transitions between neighbours of the training histories."""
        histories = dataset.train_histories()
        tokens = np.asarray(histories.tokens, dtype=np.int64)
        counts = dataset.train_counts()
        n = len(counts)
        inside = np.ones(max(0, len(tokens) - 1), dtype=bool)
        inside[histories.offsets[1:-1] - 1] = False  # no transition from one user to the next
        pairs, times = np.unique(tokens[:-1][inside] * n + tokens[1:][inside], return_counts=True)
        starts = np.searchsorted(pairs, np.arange(n + 1) * n)
        device = self.share.device
        self.starts = torch.from_numpy(starts).to(device)
        self.nexts = torch.from_numpy(pairs % n).to(device)
        self.times = torch.from_numpy(times).float().to(device)
        self.share = torch.from_numpy(counts / max(1, counts.sum())).float().to(device)
        return self

    def query(self, batch: Batch) -> Tensor:
        """The last token int64 (U,) of each history, 0 where there is none."""
        ends = batch.offsets[1:].long()
        if not batch.n_tokens:
            return torch.zeros_like(batch.users)
        last = batch.tokens[(ends - 1).clamp(min=0)]
        return torch.where(lengths_of(batch.offsets) > 0, last, 0)

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m): smoothed transition probabilities."""
        lengths = self.starts[query + 1] - self.starts[query]
        rows = torch.repeat_interleave(torch.arange(len(query), device=query.device), lengths)
        before = lengths.cumsum(0) - lengths
        index = torch.arange(len(rows), device=query.device) + (self.starts[query] - before)[rows]
        at = columns_of(tokens, len(self.share))[self.nexts[index]]
        counts = torch.zeros((len(query), len(tokens) + 1), device=query.device)
        counts[rows, at] = self.times[index]
        total = torch.zeros(len(query), device=query.device).index_add_(0, rows, self.times[index])
        scores = counts[:, : len(tokens)].add_(self.weight * self.share[tokens])
        return scores.div_((total + self.weight).unsqueeze(1))
