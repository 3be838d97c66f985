"""Candidates: ranges with holes, and tokens that are no range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hllm.errors import DataError
from hllm.evaluate.candidates import Candidates


@pytest.mark.parametrize(
    ("tokens", "first"), [([4, 5, 6, 7], 4), ([9, 1, 2, 3, 4, 5, 6, 7], 1), ([2, 9, 4], None), ([], None)]
)
def test_positions_lead_back_to_tokens(tokens: list[int], first: int | None) -> None:
    candidates = Candidates(np.array(tokens))
    assert candidates.first == first and len(candidates) == len(tokens)
    asked = np.arange(0, 12)
    at = candidates.positions(asked)
    assert {int(t) for t in asked[at >= 0]} == set(tokens)
    assert (candidates.scored[at[at >= 0]] == asked[at >= 0]).all()
    assert candidates.tokens(1, 9, torch.device("cpu")).tolist() == candidates.scored[1:9].tolist()


def test_fewer_candidates_share_what_is_prepared() -> None:
    candidates = Candidates(np.array([1, 2, 3, 4, 6]))
    fewer = candidates.without(np.array([2, 11, 6, 2]))
    assert fewer.scored is candidates.scored
    assert (len(candidates), len(fewer)) == (5, 3)
    assert fewer.positions(np.array([1, 2, 3, 4, 5, 6])).tolist() == [0, -1, 2, 3, -1, -1]
    assert candidates.positions(np.array([2, 5])).tolist() == [1, -1]


@pytest.mark.parametrize("tokens", [[1, 1], [0, 1], [-3]])
def test_tokens_that_are_none(tokens: list[int]) -> None:
    with pytest.raises(DataError, match="distinct tokens from 1"):
        Candidates(np.array(tokens))
