"""EASE (Steck, 2019, arXiv:1905.03375): a linear item-to-item model in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hllm.baselines.cooccurrence import cooccurrences
from hllm.baselines.lookup import distinct_tokens
from hllm.errors import DataError

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.packing import Batch

MOST_ITEMS = 20_000


class EASE(nn.Module):
    """score(j) = sum, over the distinct items i of a history, of B_ij, with B = I - P / diag(P),
    P = (X'X + regularisation I)^-1 and X the users x items matrix of training histories, 0 or 1.

    Items without a training event score 0.
    """

    weights: Tensor  # float32 (m, m + 1): B over the m trained items, and a last column of zeros
    place: Tensor  # int64 (n,): where a token is among them, m if it is not

    def __init__(self, regularisation: float = 500.0) -> None:
        super().__init__()
        self.regularisation = regularisation
        self.register_buffer("weights", torch.zeros((0, 1)))
        self.register_buffer("place", torch.zeros(1, dtype=torch.int64))

    def fit(self, dataset: Dataset) -> EASE:
        """Invert the matrix of co-occurrences. Raises DataError above MOST_ITEMS items."""
        check_size(dataset)
        counts = dataset.train_counts()
        trained, n = np.flatnonzero(counts), len(counts)
        m = len(trained)
        gram = torch.empty((m, m))
        for first, block in cooccurrences(dataset.train_histories(), n):
            a, b = np.searchsorted(trained, (first, first + len(block)))
            gram[a:b] = torch.from_numpy(block[trained[a:b] - first][:, trained]).float()
        gram.diagonal().add_(self.regularisation)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        weights = torch.zeros((m, m + 1))
        weights[:, :m] = inverse / -inverse.diagonal()
        weights[:, :m].fill_diagonal_(0)
        place = np.full(n, m)
        place[trained] = np.arange(m)
        device = self.weights.device
        self.weights, self.place = weights.to(device), torch.from_numpy(place).to(device)
        return self

    def query(self, batch: Batch) -> Tensor:
        """Histories float32 (U, m): 1 for each trained item in it."""
        m = len(self.weights)
        found = self.weights.new_zeros((batch.n_users, m + 1))
        return found.scatter_(1, self.place[distinct_tokens(batch)], 1.0)[:, :m]

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m')."""
        return query @ self.weights[:, self.place[tokens]]


def check_size(dataset: Dataset) -> None:
    """Raise DataError where `dataset` has more trained items than a matrix of items x items can be inverted for."""
    m = int(np.count_nonzero(dataset.train_counts()))
    if m > MOST_ITEMS:
        raise DataError(
            f"ease inverts a matrix of items x items, {m * m * 4 / 2**30:.1f} GiB of float32 for {m:,} items, several "
            f"times over, and its time grows as their cube; it takes at most {MOST_ITEMS:,}. Use the baseline item-knn"
        )
