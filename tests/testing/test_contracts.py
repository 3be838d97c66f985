"""The contract of rankers finds what it is there to find."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hllm.baselines.random import Random
from hllm.packing import Batch
from hllm.testing import check_ranker, world


class Honest:
    def __init__(self) -> None:
        self.random = Random(0)

    def query(self, batch: Batch) -> Tensor:
        return self.random.query(batch)

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return self.random.score(query, tokens)


class Double(Honest):
    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return super().score(query, tokens).double()


class Neighbours(Honest):
    """Scores that depend on who else is asked about."""

    def query(self, batch: Batch) -> Tensor:
        query = super().query(batch)
        self.size = len(query)
        return query

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return super().score(query, tokens) / self.size


class Relative(Honest):
    """Scores that depend on which items are asked about."""

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return super().score(query, tokens).softmax(-1)


class Restless(Honest):
    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return super().score(query, tokens) + 1e-7 * torch.rand(len(tokens))


class Infinite(Honest):
    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return super().score(query, tokens) / 0


def test_an_honest_ranker_passes() -> None:
    check_ranker(Honest(), world(20))


@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        (Double, "float64"),
        (Neighbours, "depends on the batch"),
        (Relative, "depends on the other items"),
        (Restless, "different bits"),
        (Infinite, "not finite"),
    ],
)
def test_a_broken_one_does_not(ranker: type[Honest], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_ranker(ranker(), world(20))
