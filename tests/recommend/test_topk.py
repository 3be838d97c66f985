"""Rules in, exact recommendations out; the same as `evaluate` sees."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from hllm.baselines.popularity import Popularity
from hllm.baselines.random import Random
from hllm.data.batches.queries import eval_queries, history_queries, last_queries
from hllm.data.dataset import Dataset
from hllm.errors import DataError
from hllm.evaluate.evaluation import evaluate
from hllm.recommend.rules import Rules, make_rules
from hllm.recommend.topk import recommend


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i:02}") for u in range(40) for i in rng.permutation(30)[: rng.integers(3, 12)]]
    rows += [("all", f"i{i:02}") for i in range(30)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_row_index("timestamp")
    items = pl.DataFrame({"item_id": [f"i{i:02}" for i in range(33)], "title": "t"})
    return Dataset.from_tables(frame, items, time_unit="index")


def test_lists_score_like_evaluate(dataset: Dataset) -> None:
    """No ties: counting hits in the lists gives the metrics of `evaluate` exactly."""
    queries = eval_queries(dataset, "test")
    metrics = evaluate(Random(1), dataset)
    assert metrics.protocol.tied_share == 0
    top = recommend(Random(1), queries, make_rules(dataset), 10, batch_users=6, tile_items=4)
    hit = top.tokens == queries.targets[top.rows]
    ndcg = (1 / np.log2(top.ranks[hit] + 1)).sum() / len(queries)
    assert metrics["ndcg@10"] == pytest.approx(ndcg, abs=1e-12)
    assert metrics["hr@10"] == hit.sum() / len(queries)


def test_rules_come_before_the_cut(dataset: Dataset) -> None:
    """Case D19, by item id: exclusions, a list of allowed items, and the catalogue."""
    queries = history_queries([[dataset.token_of("i00")], [dataset.token_of("i01")]])
    ranker = Popularity().fit(dataset)

    def ids(k: int, **rules) -> list[list[str]]:
        top = recommend(ranker, queries, make_rules(dataset, **rules), k)
        return [[dataset.item_ids[t - 1] for t in top.tokens[top.rows == row]] for row in (0, 1)]

    assert [sorted(row) for row in ids(9, candidates=["i00", "i01", "i05"])] == [
        ["i01", "i05"],
        ["i00", "i05"],
    ]
    assert [sorted(row) for row in ids(9, candidates=["i00", "i01"], keep_seen=True)] == [["i00", "i01"]] * 2
    best = ids(1)[0][0]
    assert ids(1, exclude=[best])[0] != [best]
    assert ids(9, candidates=["i02", "i03"], exclude_by_query={1: ["i02"]})[1] == ["i03"]
    assert len(ids(99)[0]) == 29
    assert len(ids(99, candidates="catalogue")[0]) == 32
    assert ids(5, candidates=[]) == [[], []]
    with pytest.raises(DataError, match="i77"):
        make_rules(dataset, exclude=["i77"])


def test_a_user_alone_and_in_a_batch(dataset: Dataset) -> None:
    """Case D20."""
    rules = make_rules(dataset)
    ranker = Random(2)
    rows = np.array([3, 0, 11])
    together = recommend(ranker, last_queries(dataset, rows), rules, 5)
    alone = recommend(ranker, last_queries(dataset, rows[2:]), rules, 5)
    assert np.array_equal(together.tokens[together.rows == 2], alone.tokens)
    assert np.array_equal(together.scores[together.rows == 2], alone.scores)


def test_a_user_who_saw_everything_gets_nothing(dataset: Dataset) -> None:
    queries = last_queries(dataset, np.array([dataset.row_of("all"), 1]))
    top = recommend(Random(0), queries, make_rules(dataset), 3)
    assert top.rows.tolist() == [1, 1, 1]


def test_rules_in_tokens(dataset: Dataset) -> None:
    top = recommend(Random(0), history_queries([[2]]), Rules(np.array([2, 9, 4])), 5)
    assert sorted(top.tokens.tolist()) == [4, 9]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(dataset: Dataset) -> None:
    queries, rules = eval_queries(dataset, "test"), make_rules(dataset)
    host = recommend(Random(0), queries, rules, 10, tile_items=7)
    device = recommend(Random(0).cuda(), queries, rules, 10, tile_items=7)
    assert np.array_equal(host.tokens, device.tokens)
    assert np.array_equal(host.scores, device.scores)
    ranks = [evaluate(ranker, dataset).ranks for ranker in (Random(0), Random(0).cuda())]
    assert np.array_equal(*ranks)
