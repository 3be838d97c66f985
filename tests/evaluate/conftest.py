"""Small datasets, a ranker with given scores, and a brute-force reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from hllm.data.dataset import Dataset
from hllm.packing import Batch


@dataclass
class MatrixRanker:
    """Scores from a matrix (dataset rows, tokens)."""

    scores: Tensor

    def query(self, batch: Batch) -> Tensor:
        return batch.users

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return self.scores[query][:, tokens]


@pytest.fixture
def matrix_ranker() -> type[MatrixRanker]:
    return MatrixRanker


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """A dataset of random histories, in which items may repeat; every item up to `n_items` occurs."""

    def make(n_users: int = 30, n_items: int = 40, length: int = 12, seed: int = 0, **options) -> Dataset:
        rng = np.random.default_rng(seed)
        rows = [
            (u, int(i)) for u in range(n_users) for i in rng.integers(0, n_items, rng.integers(3, length + 1))
        ]
        rows += [(n_users, item) for item in range(n_items)]
        frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
        return Dataset.from_tables(frame.with_row_index("timestamp"), time_unit="index", **options)

    return make


@pytest.fixture
def brute_force() -> Callable[..., tuple[list[int], list[bool], list[list[int]]]]:
    """Ranks, ties and full lists, one user and one item at a time, in plain Python."""

    def rank(dataset: Dataset, split: str, scores: np.ndarray, candidates, keep_seen: bool):
        ranks, ties, lists = [], [], []
        for position in dataset.queries[split].tolist():
            user = next(u for u in range(dataset.n_users) if position < dataset.offsets[u + 1])
            history = dataset.tokens[dataset.offsets[user] : position].tolist()
            target = int(dataset.tokens[position])
            shown = [t for t in candidates if keep_seen or t not in history]
            row = scores[user]
            others = [t for t in shown if t != target]
            ranked = target in shown
            ranks.append(1 + sum(row[t] >= row[target] for t in others) if ranked else 0)
            ties.append(ranked and any(row[t] == row[target] for t in others))
            lists.append(sorted(shown, key=lambda t: (-row[t], t)))
        return ranks, ties, lists

    return rank


@pytest.fixture
def coarse_scores() -> Callable[..., Tensor]:
    """Random scores with many ties, both zeros among them."""

    def make(dataset: Dataset, seed: int = 0, levels: int = 7) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (dataset.n_users, dataset.n_catalogue + 1)
        scores = torch.randint(-levels, levels + 1, shape, generator=generator).float() / levels
        return torch.where(torch.rand(shape, generator=generator) < 0.1, -0.0, scores)

    return make
