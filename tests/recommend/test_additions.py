"""Items added to a run's catalogue."""

from __future__ import annotations

from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hllm.data.dataset import Dataset
from hllm.errors import DataError
from hllm.recommend.additions import added_dataset, check_new_items
from hllm.recommend.rules import make_rules
from hllm.testing import world

NEW = {"item_id": [900, 901], "title": ["Fresh Snow (2024)", None], "genres": ["Comedy", None]}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(n_users=8, n_items=15)


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame, pa.table])
def test_any_table_becomes_the_catalogues_columns(data: Dataset, make: Any) -> None:
    frame = check_new_items(data, make(NEW))
    assert frame.schema == data.items.schema
    assert frame["item_id"].to_list() == [900, 901]
    assert frame["title"].to_list() == NEW["title"]


def test_columns_that_are_missing_are_empty_and_others_dropped(data: Dataset) -> None:
    frame = check_new_items(data, pl.DataFrame({"item_id": [900], "title": ["a"], "colour": ["red"]}))
    assert frame.columns == data.items.columns
    assert frame["genres"].to_list() == [None]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": [900, 12, 11]}, "2 items are in the catalogue already, the first is 12"),
        ({"item_id": ["abc"]}, "item_id is int64 in the catalogue but string in the new items .*'abc'"),
        ({"title": ["x"]}, "item_id"),
    ],
)
def test_items_that_cannot_be_added(data: Dataset, items: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_new_items(data, pl.DataFrame(items))


def test_columns_keep_their_type() -> None:
    interactions = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]})
    items = pl.DataFrame({"item_id": [1, 2], "title": ["a", "b"], "year": [1990, 1991]})
    data = Dataset.from_tables(interactions, items, time_unit="index")
    good = check_new_items(data, pl.DataFrame({"item_id": [3], "title": ["c"], "year": ["1992"]}))
    assert good.row(0) == (3, "c", 1992)
    with pytest.raises(DataError, match="of another type than in the catalogue"):
        check_new_items(data, pl.DataFrame({"item_id": [3], "title": ["c"], "year": ["unknown"]}))


def test_added_items_are_candidates_at_once(data: Dataset) -> None:
    more = added_dataset(data, check_new_items(data, pl.DataFrame(NEW)))
    assert more.n_catalogue == data.n_catalogue + 2 and more.n_candidates == data.n_candidates
    assert [more.token_of(item) for item in (900, 901)] == [data.n_catalogue + 1, data.n_catalogue + 2]
    assert more.item_ids[: data.n_catalogue] == data.item_ids
    candidates = set(make_rules(more).candidates.tolist())
    assert {more.token_of(900), more.token_of(901)} <= candidates
    assert len(candidates) == data.n_candidates + 2  # the items that never had an event are none
    twice = added_dataset(more, check_new_items(more, pl.DataFrame({"item_id": [902], "title": ["y"]})))
    assert set(make_rules(twice).candidates.tolist()) == candidates | {twice.token_of(902)}
    assert twice.fingerprint == data.fingerprint
    assert data.n_catalogue == len(data.items)  # the first is as it was
