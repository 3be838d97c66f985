"""`evaluate` from a dataset to metrics."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from hllm.baselines.popularity import Popularity
from hllm.data.dataset import Dataset
from hllm.errors import ConfigError, DataError
from hllm.evaluate.evaluation import device_of, evaluate, parse_max_len, popularity_percentiles
from hllm.evaluate.metrics import rank_values


@pytest.mark.parametrize("keep_seen", [False, True])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_equals_brute_force(
    make_dataset, coarse_scores, matrix_ranker, brute_force, keep_seen, split
) -> None:
    dataset = make_dataset(seed=3)
    scores = coarse_scores(dataset, 3)
    ranker = matrix_ranker(scores)
    metrics = evaluate(ranker, dataset, split, ks=[1, 5, 1000], keep_seen=keep_seen, bootstrap=0)
    candidates = range(1, dataset.n_candidates + 1)
    ranks, ties, lists = brute_force(dataset, split, scores.numpy(), candidates, keep_seen)
    assert metrics.ranks.tolist() == ranks
    for name in ("hr@1", "ndcg@5", "mrr@5", "recall@1000"):
        assert metrics[name] == pytest.approx(rank_values(np.array(ranks), name).mean())
    assert metrics.protocol.tied_share == np.mean(ties)
    repeated = [
        dataset.tokens[p] in dataset.tokens[dataset.offsets[u] : p]
        for u, p in zip(metrics.users, dataset.queries[split], strict=True)
    ]
    assert metrics.protocol.repeated_share == np.mean(repeated)
    assert metrics["coverage@5"] == len({t for row in lists for t in row[:5]}) / dataset.n_candidates
    counts = dataset.train_counts()[1 : dataset.n_candidates + 1]
    percentile = [((counts < c).sum() + (counts <= c).sum()) / 2 / len(counts) for c in counts]
    recommended = [percentile[t - 1] for row in lists for t in row[:5]]
    assert metrics["popularity@5"] == pytest.approx(np.mean(recommended))


def test_tiles_and_blocks_change_nothing(make_dataset, coarse_scores, matrix_ranker) -> None:
    dataset = make_dataset()
    ranker = matrix_ranker(coarse_scores(dataset))
    whole = evaluate(ranker, dataset)
    small = evaluate(ranker, dataset, batch_users=7, tile_items=3)
    assert small.to_dict() == whole.to_dict()


def test_catalogue_candidates(matrix_ranker) -> None:
    """Catalogue-only items compete only when asked for."""
    events = pl.DataFrame({"user_id": ["u"] * 3, "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    items = pl.DataFrame({"item_id": [1, 2, 3, 9], "title": list("abcd")})
    dataset = Dataset.from_tables(events, items, time_unit="index")
    ranker = matrix_ranker(torch.tensor([[0.0, 1, 1, 1, 2]]))
    assert evaluate(ranker, dataset, bootstrap=0).ranks.tolist() == [1]
    everything = evaluate(ranker, dataset, candidates="catalogue", bootstrap=0)
    assert everything.ranks.tolist() == [2]
    assert everything.protocol.n_items == 4
    subset = evaluate(ranker, dataset, candidates=np.array([1, 2]), bootstrap=0)
    assert subset.ranks.tolist() == [0]
    assert subset.protocol.candidates == "given"


def test_protocol_is_recorded(make_dataset) -> None:
    dataset = make_dataset()
    protocol = evaluate(
        Popularity().fit(dataset),
        dataset,
        "validation",
        keep_seen=True,
        max_len=5,
        seeds=[3],
        checkpoint="last",
    ).protocol
    assert protocol.fingerprint == dataset.fingerprint
    assert (protocol.split, protocol.seen, protocol.max_len) == ("validation", "kept", 5)
    assert (protocol.seeds, protocol.checkpoint) == ((3,), "last")
    assert (protocol.n_users, protocol.n_items) == (31, 40)
    assert protocol.skipped == {"users_too_short": 0}


def test_slices_cover_everybody(make_dataset) -> None:
    dataset = make_dataset()
    metrics = evaluate(Popularity().fit(dataset), dataset)
    for rows in metrics.slices.values():
        assert sum(row["users"] for row in rows) == 31
        mean = sum(row["users"] * row["ndcg@10"] for row in rows) / 31
        assert mean == pytest.approx(metrics["ndcg@10"])
        assert all(row["intervals"]["ndcg@10"][0] <= row["ndcg@10"] for row in rows)
    assert evaluate(Popularity().fit(dataset), dataset, details=False).slices == {}


def test_all_targets_of_held_out_users(make_dataset, matrix_ranker, coarse_scores) -> None:
    dataset = make_dataset(split="user-ratio", targets="all", ratio=(0.5, 0.25, 0.25))
    metrics = evaluate(matrix_ranker(coarse_scores(dataset)), dataset, ks=[5])
    assert metrics.protocol.n_targets > metrics.protocol.n_users
    per_user = [
        rank_values(metrics.ranks[metrics.users == u], "ndcg@5").mean() for u in np.unique(metrics.users)
    ]
    assert metrics["ndcg@5"] == pytest.approx(np.mean(per_user))
    assert metrics.per_user("ndcg@5") == pytest.approx(per_user)


def test_bad_requests(make_dataset) -> None:
    dataset = make_dataset()
    ranker = Popularity().fit(dataset)
    with pytest.raises(ConfigError, match=r"unknown split 'tset' \(did you mean 'test'\?\)"):
        evaluate(ranker, dataset, "tset")
    with pytest.raises(ConfigError, match="k=0"):
        evaluate(ranker, dataset, ks=[0])
    with pytest.raises(ConfigError, match="max_len='some'"):
        evaluate(ranker, dataset, max_len="some")
    short = Dataset.from_tables(
        pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": [1]}), time_unit="s"
    )
    with pytest.raises(
        DataError, match=r"nobody to evaluate in split 'test' of tables \(users_too_short 1\)"
    ):
        evaluate(ranker, short)


def test_small_parts() -> None:
    assert [parse_max_len(m) for m in (None, "all", 7)] == [None, None, 7]
    assert device_of(torch.nn.Linear(1, 1)) == torch.device("cpu")
    assert device_of(object()) == torch.device("cpu")
    assert popularity_percentiles(np.array([5, 1, 5, 9])).tolist() == [0.5, 0.125, 0.5, 0.875]
    assert popularity_percentiles(np.zeros(0, np.int64)).shape == (0,)


def test_a_sample_of_users_is_drawn_by_its_seed(make_dataset, coarse_scores, matrix_ranker) -> None:
    dataset = make_dataset()
    ranker = matrix_ranker(coarse_scores(dataset))
    everyone = evaluate(ranker, dataset)
    some, again, other = (evaluate(ranker, dataset, users=9, sample_seed=seed) for seed in (1, 1, 2))
    assert some.protocol.n_users == 9
    assert some.users.tolist() == again.users.tolist() != other.users.tolist()
    own = dict(zip(everyone.users.tolist(), everyone.ranks.tolist(), strict=True))
    assert some.ranks.tolist() == [own[user] for user in some.users.tolist()]
    assert evaluate(ranker, dataset, users=10**6).values == everyone.values
