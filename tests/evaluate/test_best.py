"""The best k of tiles against sorting everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hllm.evaluate.best import Best
from hllm.evaluate.candidates import Candidates
from hllm.evaluate.counting import reaching
from hllm.evaluate.tiles import Tile


@pytest.mark.parametrize("levels", [1, 3, 50, 10**6])
@pytest.mark.parametrize(("k", "tile"), [(1, 7), (3, 100), (10, 40), (60, 40), (500, 300)])
def test_the_best_are_those_of_a_full_sort(k: int, tile: int, levels: int) -> None:
    rng = np.random.default_rng(k + levels)
    scores = (rng.integers(0, levels, (6, 300)) - levels // 2).astype(np.float32)
    scores[rng.random((6, 300)) < 0.3] = -np.inf  # hidden
    scores[4] = -np.inf
    candidates = Candidates(np.arange(5, 305))
    best = Best(6, k, torch.device("cpu"))
    for first in range(0, 300, tile):
        best.add(Tile(first, torch.from_numpy(scores[:, first : first + tile].copy())))
    top = best.result(20, candidates)
    for row in range(6):
        order = [i for i in np.lexsort((np.arange(300), -scores[row])) if np.isfinite(scores[row, i])][:k]
        mine = top.rows == row + 20
        assert top.tokens[mine].tolist() == [5 + i for i in order]
        assert top.scores[mine].tolist() == scores[row, order].tolist()
        assert top.ranks[mine].tolist() == list(range(1, len(order) + 1))


def test_reaching_counts_rows() -> None:
    scores = torch.tensor([[1.0, 2.0, 2.0, -torch.inf], [0.0, -0.0, 5.0, 1.0]])
    floor = torch.tensor([2.0, 0.0])
    assert reaching(scores, floor).tolist() == [2, 4]
    assert reaching(scores, floor, above=True).tolist() == [0, 2]
