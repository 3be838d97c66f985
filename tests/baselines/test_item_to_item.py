"""Item-kNN, EASE and the baselines by time against dense matrices and counts by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from hllm.baselines import cooccurrence, ease, item_knn
from hllm.baselines.cooccurrence import cooccurrences
from hllm.baselines.ease import EASE
from hllm.baselines.item_knn import ItemKNN
from hllm.baselines.recent import RecentPopularity, RepeatLast
from hllm.data.batches.queries import eval_queries, history_queries, query_batches
from hllm.data.dataset import Dataset
from hllm.errors import DataError
from hllm.evaluate.evaluation import evaluate
from hllm.testing import check_ranker


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(1)
    rows = [(u, int(i)) for u in range(50) for i in rng.integers(0, 25, rng.integers(1, 20))]
    order = rng.permutation(len(rows)).tolist()
    frame = pl.DataFrame(
        [(u, i, t) for (u, i), t in zip(rows, order, strict=True)],
        schema=["user_id", "item_id", "timestamp"],
        orient="row",
    )
    items = pl.DataFrame({"item_id": range(29), "title": [f"t{i}" for i in range(29)]})
    return Dataset.from_tables(frame, items, time_unit="index")


def interactions(dataset: Dataset) -> np.ndarray:
    """Users x tokens, 1 where a training history holds the item."""
    histories = dataset.train_histories()
    found = np.zeros((len(histories), len(dataset.train_counts())))
    users = np.repeat(np.arange(len(histories)), np.diff(histories.offsets))
    found[users, np.asarray(histories.tokens)] = 1
    return found


def seen(dataset: Dataset) -> np.ndarray:
    """Test users x tokens, 1 where the whole history before the target holds the item."""
    queries = eval_queries(dataset, "test")
    found = np.zeros((len(queries), len(dataset.train_counts())))
    rows, tokens = queries.history_pairs(slice(None))
    found[rows, tokens] = 1
    return found


def scores_of(ranker, dataset: Dataset, tokens: list[int]) -> np.ndarray:
    parts = [
        ranker.score(ranker.query(batch), torch.tensor(tokens))
        for _, batch in query_batches(eval_queries(dataset, "test"), None, 7)
    ]
    return torch.cat(parts).numpy()


@pytest.mark.parametrize("small", [False, True])
def test_cooccurrences(dataset: Dataset, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small:
        monkeypatch.setattr(cooccurrence, "BLOCK_COUNTS", 70)
        monkeypatch.setattr(cooccurrence, "BLOCK_PAIRS", 20)
    x = interactions(dataset)
    blocks = list(cooccurrences(dataset.train_histories(), x.shape[1]))
    assert (len(blocks) > 1) == small
    assert (np.concatenate([counts for _, counts in blocks]) == x.T @ x).all()
    assert [first for first, _ in blocks] == np.cumsum([0, *(len(c) for _, c in blocks[:-1])]).tolist()


@pytest.mark.parametrize("k", [4, 100])
def test_item_knn_by_hand(dataset: Dataset, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_knn, "CHUNK", 50)
    x = interactions(dataset)
    norm = np.sqrt(x.sum(0).clip(min=1))
    cosine = x.T @ x / norm / norm[:, None]
    np.fill_diagonal(cosine, 0)
    tokens = list(range(1, 30))
    scores = scores_of(ItemKNN(k).fit(dataset), dataset, tokens)
    kept = cosine * (cosine >= np.sort(cosine, axis=1)[:, ::-1][:, min(k, x.shape[1]) - 1][:, None])
    # Where several items are as near as the last neighbour, any of them may be it.
    tied = ((cosine > 0) & (kept > 0)).sum(1) > k
    clear = (seen(dataset) @ tied) == 0
    assert clear.any()
    np.testing.assert_allclose(scores[clear], (seen(dataset) @ kept)[clear][:, tokens], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("small", [False, True])
def test_ease_is_the_constrained_least_squares_solution(
    dataset: Dataset, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """min |X - X B|^2 + regularisation |B|^2 with a diagonal of zeros, one column at a time."""
    if small:
        monkeypatch.setattr(cooccurrence, "BLOCK_COUNTS", 70)
    x = interactions(dataset)
    trained = np.flatnonzero(x.sum(0))
    weights = np.zeros((x.shape[1], x.shape[1]))
    for j in trained:
        others = trained[trained != j]
        gram = x[:, others].T @ x[:, others] + 20.0 * np.eye(len(others))
        weights[others, j] = np.linalg.solve(gram, x[:, others].T @ x[:, j])
    tokens = [3, 29, 1, 12, 25]
    scores = scores_of(EASE(20.0).fit(dataset), dataset, tokens)
    np.testing.assert_allclose(scores, (seen(dataset) @ weights)[:, tokens], atol=1e-4)


def test_ease_refuses_a_large_catalogue(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "MOST_ITEMS", 20)
    with pytest.raises(DataError, match=r"items x items.*at most 20\. Use the baseline item-knn"):
        EASE().fit(dataset)


def test_recent_popularity_counts_the_latest_events(dataset: Dataset) -> None:
    histories, counts = dataset.train_histories(), dataset.train_counts()
    events = sorted(zip(histories.times.tolist(), histories.tokens.tolist(), strict=True))
    recent = Counter(token for _, token in events[int(0.8 * (len(events) - 1)) :])
    (scores, *_) = scores_of(RecentPopularity(0.2).fit(dataset), dataset, list(range(1, 30)))
    keys = [(recent[t], int(counts[t])) for t in range(1, 30)]
    for i in range(29):
        for j in range(29):
            assert (scores[i] > scores[j]) == (keys[i] > keys[j])


def test_repeat_last_by_hand(dataset: Dataset) -> None:
    ranker = RepeatLast().fit(dataset)
    _, batch = next(query_batches(history_queries([[3, 5, 3, 7], [], [2]]), None))
    scores = ranker.score(ranker.query(batch), torch.tensor([7, 3, 5, 2]))
    share = ranker.share
    expected = [
        [2.0, 1.5, 1 + 1 / 3, share[2]],
        [share[7], share[3], share[5], share[2]],
        [share[7], share[3], share[5], 2.0],
    ]
    torch.testing.assert_close(scores, torch.tensor(expected))
    assert float(share.max()) < 1


@pytest.mark.parametrize("ranker", [ItemKNN, EASE, RecentPopularity, RepeatLast])
def test_the_contract_of_rankers(ranker, dataset: Dataset) -> None:
    check_ranker(ranker().fit(dataset), dataset)


def test_known_figures_on_movielens_100k(shared_data: Path) -> None:
    frame = pl.read_csv(
        shared_data / "ml-100k" / "u.data",
        separator="\t",
        has_header=False,
        new_columns=["user_id", "item_id", "rating", "timestamp"],
    )
    dataset = Dataset.from_tables(frame)
    for ranker, ndcg, hr in ((EASE(), 0.0735, 0.1410), (ItemKNN(), 0.0545, 0.1018)):
        metrics = evaluate(ranker.fit(dataset), dataset, bootstrap=0)
        assert metrics["ndcg@10"] == pytest.approx(ndcg, abs=5e-4)
        assert metrics["hr@10"] == pytest.approx(hr, abs=2e-3)
