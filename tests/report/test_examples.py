"""Example users of the report: who they are, what they saw, what they are recommended."""

from __future__ import annotations

import polars as pl
import pytest

from hllm.data.batches.queries import eval_queries
from hllm.data.dataset import Dataset
from hllm.pipeline import Recommender
from hllm.report.examples import N_HISTORY, N_RECOMMENDED, example_users, title_of
from hllm.testing import world

SMALL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "epochs": 1, "batch_tokens": 200}


def fitted(data: Dataset) -> Recommender:
    return Recommender.from_preset("sasrec", **SMALL).fit(data, device="cpu", progress=False)


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return fitted(world(n_users=30))


def test_five_users_with_history_target_and_recommendations(recommender: Recommender) -> None:
    examples = example_users(recommender)
    data = recommender.dataset
    assert data is not None
    assert len({e["user_id"] for e in examples}) == 5
    everything = recommender.recommend(split="test", k=N_RECOMMENDED)
    queries = eval_queries(data, "test")
    for example in examples:
        row = data.row_of(example["user_id"])
        history = [data.item_ids[t - 1] for t in queries.tokens[queries.starts[row] : queries.ends[row]]]
        assert [item["item_id"] for item in example["history"]] == history[-N_HISTORY:]
        assert example["target"]["item_id"] == data.item_ids[queries.targets[row] - 1]
        assert example["target"]["title"] == title_of(data)(example["target"]["item_id"])
        own = everything.filter(pl.col("user_id") == example["user_id"])
        assert [item["item_id"] for item in example["recommended"]] == own["item_id"].to_list()
        assert [item["score"] for item in example["recommended"]] == pytest.approx(
            own["score"].to_list(), abs=1e-4
        )


def test_users_with_several_targets_show_one_query_each() -> None:
    """Under user-ratio with all targets a user has many; recommendations are of the target shown."""
    recommender = fitted(world(n_users=30, split="user-ratio", targets="all"))
    for example in example_users(recommender):
        ids = [item["item_id"] for item in example["recommended"]]
        assert len(ids) == len(set(ids)) == N_RECOMMENDED
        assert not set(ids) & {item["item_id"] for item in example["history"]}


def test_few_users_and_none(recommender: Recommender) -> None:
    assert 1 <= len(example_users(fitted(world(n_users=2)))) <= 2
    assert example_users(recommender, "no such split") == []


def test_the_id_stands_in_for_a_missing_title() -> None:
    data = world(n_users=5)
    name = title_of(data)
    assert name(10) == "Quiet River (1950)"
    assert name(data.item_ids[-1]) == str(data.item_ids[-1])
    rows = pl.DataFrame({"user_id": [1, 1], "item_id": ["a", "b"], "timestamp": [1, 2]})
    assert title_of(Dataset.from_tables(rows, time_unit="index"))("b") == "b"
