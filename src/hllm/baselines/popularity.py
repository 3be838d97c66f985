"""Popularity: the same list for everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.packing import Batch


class Popularity(nn.Module):
    """score(item) = its training events. Held-out events are not counted."""

    counts: Tensor  # float32 (n_catalogue + 1,)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(1))

    def fit(self, dataset: Dataset) -> Popularity:
        """Count the training events of each item."""
        self.counts = torch.from_numpy(dataset.train_counts()).float().to(self.counts.device)
        return self

    def query(self, batch: Batch) -> Tensor:
        """Nothing of a user is needed: (U, 0)."""
        return self.counts.new_zeros((batch.n_users, 0))

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m), the same in every row."""
        return self.counts[tokens].expand(query.shape[0], -1)
