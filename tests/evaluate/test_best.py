"""The best k of tiles against sorting everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hllm.evaluate.best import Best, TopK, make_best
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
    for rows in (slice(0, 6), *(slice(i, i + 1) for i in range(6))):
        best = make_best(rows.stop - rows.start, k, torch.device("cpu"))
        assert isinstance(best, Best) == (rows.stop == 6 and rows.start == 0)
        for first in range(0, 300, tile):
            best.add(Tile(first, torch.from_numpy(scores[rows, first : first + tile].copy())))
        check(best.result(20 + rows.start, candidates), scores, rows, k)


def check(top: TopK, scores: np.ndarray, rows: slice, k: int) -> None:
    """Against a full sort."""
    assert set(top.rows.tolist()) <= set(range(20 + rows.start, 20 + rows.stop))
    for row in range(rows.start, rows.stop):
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
