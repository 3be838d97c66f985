"""Bootstrap intervals and paired comparison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hllm.baselines.popularity import Popularity
from hllm.baselines.random import Random
from hllm.errors import ConfigError, DataError
from hllm.evaluate.evaluation import evaluate
from hllm.evaluate.significance import bootstrap_means, compare, interval, paired_bootstrap


def test_bootstrap_equals_resampling_users_one_by_one() -> None:
    rng = np.random.default_rng(0)
    ranks = rng.integers(1, 4, 80)
    kinds, counts = np.unique(ranks, return_counts=True)
    fast = bootstrap_means((1 / kinds)[:, None], counts, 4000)[:, 0]
    slow = np.array([(1 / ranks)[rng.integers(0, 80, 80)].mean() for _ in range(4000)])
    assert fast.mean() == pytest.approx(slow.mean(), abs=0.003)
    assert fast.std() == pytest.approx(slow.std(), rel=0.08)
    assert interval(fast[:, None])[:, 0] == pytest.approx(np.percentile(slow, [2.5, 97.5]), abs=0.01)


def test_bootstrap_is_seeded_and_covers_the_mean() -> None:
    values = np.random.default_rng(1).random((500, 2))
    ones = np.ones(500, np.int64)
    first = bootstrap_means(values, ones, 300)
    assert np.array_equal(first, bootstrap_means(values, ones, 300))
    assert not np.array_equal(first, bootstrap_means(values, ones, 300, seed=1))
    low, high = interval(first)
    assert (low < values.mean(0)).all()
    assert (values.mean(0) < high).all()


def test_many_kinds_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hllm.evaluate.significance.DRAWS_AT_ONCE", 64)
    means = bootstrap_means(np.arange(10.0)[:, None], np.ones(10, np.int64), 50)
    assert means.shape == (50, 1)
    assert means.mean() == pytest.approx(4.5, abs=0.5)


def test_pairing_sees_small_steady_differences() -> None:
    rng = np.random.default_rng(2)
    first = rng.random(400)
    better = first + 0.01 + rng.normal(0, 0.01, 400)
    found = paired_bootstrap(first, better, "ndcg@10")
    assert found.difference == pytest.approx((better - first).mean())
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.p_value < 0.001
    noise = paired_bootstrap(first, first + rng.normal(0, 0.01, 400) - 0.0)
    assert noise.interval[0] < noise.difference < noise.interval[1]
    same = paired_bootstrap(first, first)
    assert (same.difference, same.p_value, same.interval) == (0.0, 1.0, (0.0, 0.0))
    assert str(found).startswith("ndcg@10: ")


def test_p_values_are_honest() -> None:
    """Without a difference, about 5% of comparisons fall below 0.05."""
    rng = np.random.default_rng(3)
    p = [paired_bootstrap(np.zeros(50), rng.normal(size=50), n=400).p_value for _ in range(300)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.10


def test_comparing_needs_one_question(make_dataset) -> None:
    dataset = make_dataset()
    first = evaluate(Random(0), dataset, bootstrap=0)
    second = evaluate(Popularity().fit(dataset), dataset, bootstrap=0)
    found = compare(first, second, "hr@20")
    assert found.difference == pytest.approx(second["hr@20"] - first["hr@20"])
    assert found.n_users == 31
    kept = evaluate(Random(0), dataset, keep_seen=True, bootstrap=0)
    with pytest.raises(DataError, match="seen is filtered in one and kept in the other"):
        compare(first, kept)
    with pytest.raises(DataError, match="different users or targets"):
        compare(first, replace(second, targets=second.targets[::-1]))
    with pytest.raises(DataError, match="same users twice"):
        paired_bootstrap(np.zeros(3), np.zeros(4))
    with pytest.raises(ConfigError, match="n=0"):
        compare(first, second, n=0)
