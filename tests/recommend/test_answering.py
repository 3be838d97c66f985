"""Whom and what: users, histories, titles and splits asked for, unknown and empty ones, and questions without sense."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from hllm.data.dataset import Dataset
from hllm.errors import ConfigError, DataError
from hllm.pipeline import Recommender
from hllm.testing import world

SMALL: dict[str, Any] = {
    "d_model": 16, "n_layers": 1, "n_heads": 2, "epochs": 3, "batch_tokens": 200, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(string_ids=True)


@pytest.fixture(scope="module")
def recommender(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    """Read anew by tests that change it; embeddings are made on the way, as none are there."""
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setenv("HLLM_HOME", str(tmp_path_factory.mktemp("home")))
        small = Recommender.from_preset("demo", **SMALL, item_llm="random", adapter_hidden=16, whiten_rank=8)
        return small.fit(data, device="cpu", progress=False)


def test_known_users(recommender: Recommender, data: Dataset) -> None:
    frame = recommender.recommend(users=["u003", "u000"], k=4)
    assert frame.columns == ["user_id", "item_id", "score", "rank"]
    assert frame["user_id"].to_list() == ["u003"] * 4 + ["u000"] * 4
    assert frame["rank"].to_list() == [1, 2, 3, 4] * 2
    assert set(frame["item_id"]) <= set(data.item_ids)
    seen = data.interactions.filter(pl.col("user_id") == "u003")["item_id"].to_list()
    assert not set(frame["item_id"][:4]) & set(seen)
    assert recommender.recommend(k=1)["user_id"].to_list() == data.user_ids


def test_histories_and_titles_are_the_same_question(recommender: Recommender) -> None:
    by_id = recommender.recommend(history=[["001", "006"]], k=5)
    by_title = recommender.recommend(titles=[["Golden River (1951)", "Sudden River (1957)"]], k=5)
    other = recommender.recommend(titles=[["Golden River (1951)", "Last River (1955)"]], k=5)
    assert by_id["user_id"].to_list() == [0] * 5
    assert by_title.columns == by_id.columns
    assert not by_id.equals(other)
    data = recommender.dataset
    assert data is not None
    titles = [[data.items.filter(pl.col("item_id") == i)["title"][0] for i in ("001", "006")]]
    assert recommender.recommend(titles=titles, k=5).equals(by_id)


def test_a_known_users_history_gives_what_the_user_gets(recommender: Recommender, data: Dataset) -> None:
    history = data.interactions.filter(pl.col("user_id") == "u005")["item_id"].to_list()
    asked, known = recommender.recommend(history=[history]), recommender.recommend(users=["u005"])
    assert asked["item_id"].to_list() == known["item_id"].to_list()
    np.testing.assert_allclose(asked["score"], known["score"], atol=1e-5)


def test_the_test_split_agrees_with_evaluate(recommender: Recommender, data: Dataset) -> None:
    frame = recommender.recommend(split="test", k=10)
    truth = {data.user_ids[u]: data.item_ids[t - 1] for u, t in _held_out(data)}
    hits = [(rank, truth[user] == item) for user, item, _, rank in frame.iter_rows()]
    metrics = recommender.evaluate(bootstrap=0)
    assert metrics.protocol.tied_share == 0
    assert sum(hit for _, hit in hits) / len(truth) == pytest.approx(metrics["hr@10"], abs=1e-12)
    ndcg = sum(hit / np.log2(rank + 1) for rank, hit in hits) / len(truth)
    assert ndcg == pytest.approx(metrics["ndcg@10"], abs=1e-12)


def _held_out(data: Dataset) -> list[tuple[int, int]]:
    return [
        (int(np.searchsorted(data.offsets, p, side="right") - 1), int(data.tokens[p]))
        for p in data.queries["test"]
    ]


def test_exclusions_seen_and_the_catalogue(recommender: Recommender, data: Dataset) -> None:
    best = recommender.recommend(users=["u001"], k=1)["item_id"][0]
    assert recommender.recommend(users=["u001"], k=1, exclude=[best])["item_id"][0] != best
    n_seen = data.interactions.filter(pl.col("user_id") == "u001").height
    sizes = [
        len(recommender.recommend(users=["u001"], k=999, **options))
        for options in ({}, {"keep_seen": True}, {"candidates": "catalogue"})
    ]
    assert sizes == [data.n_candidates - n_seen, data.n_candidates, data.n_catalogue - n_seen]


def test_case_d19_fewer_candidates_than_k() -> None:
    """5 items, the user saw 3: 2 rows; then k=1 with the best of the two excluded: the other one."""
    rows = [("u1", i, t) for t, i in enumerate("abc")] + [("u2", i, t) for t, i in enumerate("cdeab")]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    recommender = Recommender.from_preset("sasrec", **{**SMALL, "epochs": 1})
    recommender.fit(Dataset.from_tables(frame, time_unit="index"), device="cpu", progress=False)
    found = recommender.recommend(users=["u1"], k=10)
    assert sorted(found["item_id"]) == ["d", "e"]
    assert found["rank"].to_list() == [1, 2]
    assert found["score"].is_finite().all()
    best, other = found["item_id"]
    assert recommender.recommend(users=["u1"], k=1, exclude=[best])["item_id"].to_list() == [other]
    assert len(recommender.recommend(users=["u1"], exclude=["d", "e"])) == 0
    assert len(recommender.recommend(users=["u2"])) == 0  # saw everything


def test_case_d20_unknown_single_and_empty(recommender: Recommender) -> None:
    with pytest.raises(DataError, match=r"'ghost'.*history="):
        recommender.recommend(users=["ghost", "u001"])
    alone = recommender.recommend(users=["u001"])
    batch = recommender.recommend(users=["u000", "u001", "u002"]).filter(pl.col("user_id") == "u001")
    assert alone["item_id"].to_list() == batch["item_id"].to_list()
    np.testing.assert_allclose(alone["score"], batch["score"], atol=1e-5)
    with pytest.raises(DataError, match="history 0 is empty"):
        recommender.recommend(history=[[]])
    assert recommender.recommend(users=[]).schema == alone.schema


def test_case_e14_unknown_users_by_choice(recommender: Recommender, data: Dataset) -> None:
    with pytest.raises(DataError, match=r"unknown user_id 'ghost', 'nobody' \(2 in all\).*skip"):
        recommender.recommend(users=["ghost", "u001", "nobody"])
    known = recommender.recommend(users=["u001"], k=4)
    asked: dict[str, Any] = {"users": ["ghost", "u001", "nobody"], "k": 4}
    assert recommender.recommend(**asked, unknown="skip").equals(known)
    frame = recommender.recommend(**asked, unknown="popular")
    assert frame["user_id"].to_list() == ["ghost"] * 4 + ["u001"] * 4 + ["nobody"] * 4
    assert frame[4:8].equals(known)
    counts = data.train_counts()[1 : data.n_candidates + 1]
    best = [data.item_ids[i] for i in np.lexsort((np.arange(len(counts)), -counts))[:4]]
    assert frame["item_id"][:4].to_list() == frame["item_id"][8:].to_list() == best
    assert frame["score"][0] == counts.max()
    assert recommender.recommend(users=["ghost"], unknown="skip").schema == known.schema
    with pytest.raises(ConfigError, match="error, skip, popular"):
        recommender.recommend(users=["ghost"], unknown="ignore")


def test_case_d20_empty_histories_by_choice(recommender: Recommender) -> None:
    """Known, unknown and empty in one batch."""
    asked: dict[str, Any] = {"history": [[], ["001", "006"], ["nothing"], ["006", "nothing"]], "k": 3}
    alone = recommender.recommend(history=[["001", "006"]], k=3)
    skipped = recommender.recommend(**asked, unknown="skip")
    assert skipped["user_id"].to_list() == [1] * 3
    assert skipped["item_id"].to_list() == alone["item_id"].to_list()
    popular = recommender.recommend(**asked, unknown="popular", exclude=["001"])
    assert popular["user_id"].to_list() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert popular["item_id"][:3].to_list() == popular["item_id"][6:9].to_list()
    assert "001" not in popular["item_id"].to_list()


@pytest.mark.parametrize("preset", ["rechub", "sasrec"])
def test_histories_with_times_get_what_the_user_gets(data: Dataset, preset: str) -> None:
    """A model that reads clocks says once what it takes a history without times for."""
    own = {"item_llm": "random"} if preset == "rechub" else {"d_model": 16}
    recommender = Recommender.from_preset(preset, epochs=1, n_layers=1, **own)
    recommender.fit(data, device="cpu", progress=False)
    events = data.interactions.filter(pl.col("user_id") == "u005")
    if preset == "rechub" and recommender.network is not None:
        torch.nn.init.normal_(recommender.network.get_parameter("model.user_model.time_embedding.weight"))
    history, times = [events["item_id"].to_list()], [events["timestamp"].to_list()]
    known = recommender.recommend(users=["u005"], k=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        timed = recommender.recommend(history=history, times=times, k=5)
        assert not caught
        timeless = recommender.recommend(history=history, k=5)
        # With and without in one call: each as if alone.
        mixed = recommender.recommend(history=history * 3, times=[*times, None, *times], k=5)
    assert timed["item_id"].to_list() == known["item_id"].to_list()
    np.testing.assert_allclose(timed["score"], known["score"], atol=1e-5)
    assert len(caught) == (preset == "rechub")
    for number, alone in enumerate((timed, timeless, timed)):
        own_rows = mixed.filter(pl.col("user_id") == number)
        assert own_rows["item_id"].to_list() == alone["item_id"].to_list()
        np.testing.assert_allclose(own_rows["score"], alone["score"], atol=1e-5)
    assert np.allclose(timeless["score"], known["score"], atol=1e-3) == (preset == "sasrec")
    with pytest.raises(ConfigError, match="times belong to history"):
        recommender.recommend(users=["u005"], times=times)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"users": ["u001"], "split": "test"}, "split='test' says whom for"),
        ({"k": 0}, "k=0"),
        ({"candidates": "all"}, "unknown candidates 'all'"),
        ({"split": "train"}, "unknown split 'train'"),
        ({"exclude": ["nothing"]}, "unknown item_id 'nothing'"),
    ],
)
def test_questions_that_make_no_sense(
    recommender: Recommender, question: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        recommender.recommend(**question)
