"""Items left out by their columns, and columns of the items beside recommendations."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from hllm.data.dataset import Dataset
from hllm.errors import ConfigError, DataError
from hllm.pipeline import Recommender
from hllm.recommend.only import hidden_items, with_columns
from hllm.testing import world

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "genres": ["Comedy, Drama", "Drama|Musical", "Sitcomedy", None],
        "year": [1995, 1996, 1995, None],
        "price": [7.5, 7.0, None, 1e300],
    }
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    events = pl.DataFrame({"user_id": ["u"] * 4, "item_id": list("abcd"), "timestamp": [1, 2, 3, 4]})
    return Dataset.from_tables(events, ITEMS, time_unit="s")


@pytest.mark.parametrize(
    ("only", "kept"),
    [
        ({}, "abcd"),
        ({"genres": "Drama"}, "ab"),
        ({"genres": " drama "}, "ab"),
        ({"genres": "Comedy, Drama"}, "a"),
        ({"genres": ["Comedy", "Musical"]}, "ab"),
        ({"genres": "Comedy"}, "a"),
        ({"year": 1995}, "ac"),
        ({"year": "1995"}, "ac"),
        ({"year": 1995.0}, "ac"),
        ({"price": "7"}, "b"),
        ({"price": 7}, "b"),
        ({"genres": "Drama", "year": 1996}, "b"),
        ({"item_id": "c"}, "c"),
    ],
)
def test_which_items_stay(data: Dataset, only: dict[str, Any], kept: str) -> None:
    assert set("abcd") - set(hidden_items(data, (), only)) == set(kept)
    assert set("abcd") - set(hidden_items(data, ["a"], only)) == set(kept) - {"a"}


@pytest.mark.parametrize(
    ("only", "error"),
    [
        ({"genre": "Drama"}, ConfigError), ({"genres": "Tragedy"}, DataError), ({"genres": None}, DataError),
        ({"genres": ""}, DataError), ({1: "Drama"}, ConfigError), ("genres=Drama", ConfigError),
        (["genres"], ConfigError),
        ({"year": "x"}, DataError), ({"year": float("nan")}, DataError), ({"genres": {"a": 1}}, DataError),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_named(data: Dataset, only: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        hidden_items(data, (), only)


def test_columns_keep_the_order_of_the_rows(data: Dataset) -> None:
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["d", "a"], "score": [2.0, 1.0], "rank": [1, 2]})
    assert with_columns(frame, data, []).equals(frame)
    wide = with_columns(frame, data, ["year", "genres", "year"])
    assert wide.columns[4:] == ["year", "genres"]
    assert wide["year"].to_list() == [None, 1995] and wide["item_id"].to_list() == ["d", "a"]
    for wrong in (["rank"], ["titles"], "year", [None], 3):
        with pytest.raises((ConfigError, DataError)):
            with_columns(frame, data, wrong)  # type: ignore[arg-type]


def test_through_the_recommender() -> None:
    data = world(20, 15)
    rec = Recommender.from_preset("sasrec", d_model=8, n_layers=1, n_heads=2, epochs=1, max_len=8)
    rec.fit(data, device="cpu", progress=False)
    frame = rec.recommend(k=20, only={"genres": "Horror"}, columns=["genres"])
    assert set(frame["genres"]) == {"Horror"}
    everything = rec.recommend(k=20, columns=["genres"]).filter(pl.col("genres") == "Horror")
    assert frame.select("user_id", "item_id").equals(everything.select("user_id", "item_id"))
