"""Groups of users."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hllm.evaluate.slices import quantile_groups, slice_rows


def test_groups_by_hand() -> None:
    assert quantile_groups(np.array([0, 0, 5, 6, 7, 8]), 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert quantile_groups(np.array([4, 4, 4])).tolist() == [0, 0, 0]
    assert quantile_groups(np.array([0, 0])).tolist() == [0, 0]
    assert quantile_groups(np.zeros(0, np.int64)).shape == (0,)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_groups_are_ordered_and_whole(values: list[int]) -> None:
    array = np.array(values)
    group = quantile_groups(array)
    assert set(group) == set(range(group.max() + 1))
    for a, b in zip(values, group, strict=True):
        assert (group[array == a] == b).all()  # equal values stay together
        assert (group[array > a] >= b).all()
        assert (group[array == 0] != b).all() or a == 0  # zero is alone


def test_rows() -> None:
    rows = slice_rows(np.array([0, 3, 9, 9]), np.array([1, 0, 1, 3]), np.arange(4), bootstrap=50)
    assert [(row["label"], row["users"], row["ndcg@10"]) for row in rows] == [
        ("0", 1, 1.0),
        ("3", 1, 0.0),
        ("9", 2, 0.75),
    ]
    assert rows[0]["intervals"] == {"ndcg@10": [1.0, 1.0]}
    assert "intervals" not in slice_rows(np.array([1]), np.array([1]), np.array([0]))[0]
    assert slice_rows(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)) == []
