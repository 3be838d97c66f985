"""Baselines against counts by hand, and the known figures of popularity."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from hllm.baselines.fit import BASELINES, fit_baseline
from hllm.baselines.markov import Markov
from hllm.baselines.popularity import Popularity
from hllm.baselines.random import Random
from hllm.data.batches.queries import eval_queries, history_queries, query_batches
from hllm.data.dataset import Dataset
from hllm.errors import ConfigError
from hllm.evaluate.evaluation import evaluate


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    rows = [(u, int(i)) for u in range(60) for i in rng.integers(0, 30, rng.integers(1, 15))]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_row_index("timestamp")
    items = pl.DataFrame({"item_id": range(34), "title": [f"t{i}" for i in range(34)]})
    return Dataset.from_tables(frame, items, time_unit="index")


def train_sequences(dataset: Dataset) -> list[list[int]]:
    sequences = []
    for u in range(dataset.n_users):
        events = dataset.tokens[dataset.offsets[u] : dataset.offsets[u + 1]].tolist()
        sequences.append(events[:-2] if len(events) >= 3 else events)
    return sequences


def scores_of(ranker, dataset: Dataset, tokens: list[int]) -> np.ndarray:
    queries = eval_queries(dataset, "test")
    parts = [
        ranker.score(ranker.query(batch), torch.tensor(tokens))
        for _, batch in query_batches(queries, None, 7)
    ]
    return torch.cat(parts).numpy()


def test_popularity_counts_training_events_only(dataset: Dataset) -> None:
    counts = Counter(token for row in train_sequences(dataset) for token in row)
    tokens = [3, 1, 34, 17]
    scores = scores_of(Popularity().fit(dataset), dataset, tokens)
    assert (scores == [counts[t] for t in tokens]).all()
    assert counts[34] == 0  # catalogue-only


def test_markov_by_hand(dataset: Dataset) -> None:
    sequences = train_sequences(dataset)
    pairs = Counter((a, b) for row in sequences for a, b in pairwise(row))
    leaving = Counter(a for row in sequences for a in row[:-1])
    counts = Counter(token for row in sequences for token in row)
    total = sum(counts.values())
    tokens = [5, 34, 1, 2, 30, 12]
    scores = scores_of(Markov(weight=2.0).fit(dataset), dataset, tokens)
    last = [int(dataset.tokens[p - 1]) for p in dataset.queries["test"]]
    expected = [[(pairs[i, j] + 2 * counts[j] / total) / (leaving[i] + 2) for j in tokens] for i in last]
    assert scores == pytest.approx(np.array(expected), rel=1e-5)
    everything = scores_of(Markov().fit(dataset), dataset, list(range(1, 35)))
    assert everything.sum(1) == pytest.approx(np.ones(len(last)), rel=1e-5)  # a distribution


def test_markov_without_history_is_popularity(dataset: Dataset) -> None:
    ranker = Markov().fit(dataset)
    tokens = torch.arange(1, 35)
    for histories in ([[]], [[], [1, 2], []]):
        _, batch = next(query_batches(history_queries(histories), None))
        row = ranker.score(ranker.query(batch), tokens)[0]
        assert torch.allclose(row, ranker.share[tokens])


def test_random_is_a_function_of_seed_user_and_item(dataset: Dataset) -> None:
    tokens = list(range(1, 35))
    scores = scores_of(Random(0), dataset, tokens)
    assert np.array_equal(scores, scores_of(Random(0), dataset, tokens))
    assert np.array_equal(scores[:, [9, 2]], scores_of(Random(0), dataset, [10, 3]))  # whatever the tile
    assert not np.array_equal(scores, scores_of(Random(1), dataset, tokens))
    assert len(np.unique(scores)) > 0.99 * scores.size
    assert 0 <= scores.min() < scores.max() < 1


def test_random_is_uniform_and_independent() -> None:
    ranker = Random(5)
    queries = replace(history_queries([[1]] * 400), users=np.arange(400))
    _, batch = next(query_batches(queries, None))
    scores = ranker.score(ranker.query(batch), torch.arange(1, 501)).numpy()
    assert scores.mean() == pytest.approx(0.5, abs=0.005)
    assert scores.var() == pytest.approx(1 / 12, rel=0.02)
    assert np.abs(np.corrcoef(scores)[np.triu_indices(400, 1)]).mean() < 0.05
    assert np.abs(np.corrcoef(scores.T)[np.triu_indices(500, 1)]).mean() < 0.06


def test_known_value_of_the_hash() -> None:
    """The same on every machine and release: SplitMix64 in plain integers."""

    def mix(x: int) -> int:
        x = x * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    _, batch = next(query_batches(history_queries([[1]]), None))
    ranker = Random(7)
    found = ranker.score(ranker.query(batch), torch.tensor([3]))
    expected = (mix(mix((mix(7) - 1) % 2**64) + 3) >> 40) * 2.0**-24  # anonymous: row -1
    assert found.item() == expected


@pytest.mark.parametrize("name", BASELINES)
def test_by_name(dataset: Dataset, name: str) -> None:
    metrics = evaluate(fit_baseline(name, dataset), dataset, name=name, ks=[5])
    assert metrics.name == name
    assert 0 <= metrics["ndcg@5"] <= metrics["hr@5"] < 1
    assert metrics["hr@100"] == pytest.approx(1 - metrics.protocol.repeated_share)


def test_unknown_name(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"unknown baseline 'popularty' \(did you mean 'popularity'"):
        fit_baseline("popularty", dataset)


def test_popularity_on_movielens_100k(shared_data) -> None:
    frame = pl.read_csv(
        shared_data / "ml-100k" / "u.data",
        separator="\t",
        has_header=False,
        new_columns=["user_id", "item_id", "rating", "timestamp"],
    )
    dataset = Dataset.from_tables(frame)
    ranker = Popularity().fit(dataset)
    for keep_seen, expected in ((False, (0.0432, 0.0838)), (True, (0.0220, 0.0498))):
        metrics = evaluate(ranker, dataset, keep_seen=keep_seen, bootstrap=0, details=False)
        assert (round(metrics["ndcg@10"], 4), round(metrics["hr@10"], 4)) == expected


def test_popularity_on_movielens_1m(shared_data) -> None:
    frame = pl.read_parquet(shared_data / "ml-1m" / "interactions.parquet").rename({"position": "timestamp"})
    dataset = Dataset.from_tables(frame)
    metrics = evaluate(Popularity().fit(dataset), dataset, bootstrap=0, details=False)
    assert (round(metrics["ndcg@10"], 4), round(metrics["hr@10"], 4)) == (0.0180, 0.0369)
