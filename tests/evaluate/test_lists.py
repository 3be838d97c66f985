"""Metrics of lists against hand-computed values and a plain implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.errors import ConfigError, DataError
from hllm.evaluate.lists import evaluate_lists, evaluate_pairs


def test_case_d8_ideal_gain_is_cut_like_the_list() -> None:
    """Case D8."""
    recs = {"u": ["a", "b", "c"]}
    both = evaluate_lists(recs, {"u": {"a", "c"}}, ks=[1, 10])
    assert both["ndcg@10"] == pytest.approx(0.9197, abs=5e-5)
    assert both["ndcg@1"] == 1.0
    assert both["recall@1"] == 0.5
    missing = evaluate_lists(recs, {"u": {"a", "x"}}, ks=[10])
    assert missing["ndcg@10"] == pytest.approx(0.6131, abs=5e-5)
    with_empty = evaluate_lists(recs | {"v": ["a"]}, {"u": {"a", "c"}, "v": set()}, ks=[10])
    assert with_empty["ndcg@10"] == both["ndcg@10"]
    assert (with_empty.n_users, with_empty.n_without_truth) == (1, 1)
    assert evaluate_lists(recs, {"u": ["a"], "w": []}, ks=[10]).n_without_truth == 1
    with pytest.raises(DataError, match="nothing to score"):
        evaluate_lists(recs, {"u": set()}, ks=[10])


def test_case_d9_short_lists_are_not_filled() -> None:
    """Case D9: list [b], truth a, a the vocabulary's first item."""
    metrics = evaluate_lists({"u": ["b"]}, {"u": ["a"]}, ks=[10])
    assert [metrics[f"{kind}@10"] for kind in ("hr", "recall", "ndcg", "mrr")] == [0, 0, 0, 0]


def test_users_without_recommendations_are_misses() -> None:
    metrics = evaluate_lists({"u": ["a"], "w": ["a"]}, {"u": ["a"], "v": ["a"]}, ks=[1])
    assert metrics["hr@1"] == 0.5
    assert (metrics.n_users, metrics.n_without_recs, metrics.n_without_truth) == (2, 1, 1)
    assert evaluate_lists({}, {"u": ["a"]}, ks=[1])["ndcg@1"] == 0


def plain(recs: dict, truth: dict, k: int) -> dict[str, float]:
    sums = dict.fromkeys(("hr", "recall", "ndcg", "mrr"), 0.0)
    users = [u for u in truth if truth[u]]
    for user in users:
        hits = [rank for rank, item in enumerate(recs.get(user, [])[:k], 1) if item in truth[user]]
        ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(truth[user])) + 1))
        sums["hr"] += bool(hits)
        sums["recall"] += len(hits) / len(truth[user])
        sums["ndcg"] += sum(1 / math.log2(rank + 1) for rank in hits) / ideal
        sums["mrr"] += 1 / hits[0] if hits else 0
    return {f"{kind}@{k}": value / len(users) for kind, value in sums.items()}


LISTS = st.lists(st.integers(0, 12), unique=True, max_size=10)


@given(
    recs=st.dictionaries(st.integers(0, 8), LISTS, max_size=8),
    truth=st.dictionaries(st.integers(0, 8), LISTS, min_size=1, max_size=8),
    k=st.integers(1, 15),
)
def test_equals_a_plain_implementation(recs, truth, k) -> None:
    if not any(truth.values()):
        return
    metrics = evaluate_lists(recs, truth, ks=[k], bootstrap=20)
    assert metrics.values == pytest.approx(plain(recs, truth, k))
    assert all(0 <= value <= 1 + 1e-12 for value in metrics.values.values())
    for name, (low, high) in metrics.intervals.items():
        assert low <= high
        assert name in metrics.values


def test_columns_that_contradict_themselves() -> None:
    one = np.array([1, 1])
    with pytest.raises(DataError, match="rank 0: ranks start at 1"):
        evaluate_pairs(one, np.array([1, 2]), np.array([0, 1]), one, one)
    with pytest.raises(DataError, match="1 recommendations give a user two items at one rank"):
        evaluate_pairs(one, np.array([1, 2]), np.array([3, 3]), one, one)
    with pytest.raises(DataError, match="an item twice"):
        evaluate_pairs(one, np.array([2, 2]), np.array([1, 2]), one, one)


def test_what_is_told() -> None:
    metrics = evaluate_lists({"u": ["a"]}, {"u": ["a", "b"], "v": ["c"]}, ks=[1])
    assert metrics.result_line().startswith(
        "lists | 2 users with 3 held-out items | 1 without recommendations"
    )
    assert metrics.to_dict()["recall@1"] == 0.25
    with pytest.raises(ConfigError, match="unknown metric 'hr@2'"):
        metrics["hr@2"]
    assert set(metrics.to_dict()["intervals"]) == {"hr@1", "recall@1", "ndcg@1", "mrr@1"}
