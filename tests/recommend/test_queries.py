"""Whom to recommend for, by id, history, title or split; and what is answered to mistakes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from hllm.data.batches.queries import Queries, eval_queries
from hllm.data.dataset import Dataset
from hllm.errors import ConfigError, DataError, HLLMError
from hllm.recommend.left_out import LeftOut
from hllm.recommend.queries import queries_of, title_column
from hllm.recommend.rules import make_rules
from hllm.testing import world


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(n_users=12, n_items=20)


def histories(queries: Queries) -> list[list[int]]:
    return [queries.tokens[a:b].tolist() for a, b in zip(queries.starts, queries.ends, strict=True)]


def test_known_users_after_their_last_event(data: Dataset) -> None:
    queries, names = queries_of(data, [103, 100])
    assert names == [103, 100]
    assert queries.users.tolist() == [3, 0]
    assert not queries.targets.any()
    assert histories(queries) == [data.tokens[data.offsets[r] : data.offsets[r + 1]].tolist() for r in (3, 0)]
    everybody, names = queries_of(data)
    assert names == data.user_ids and len(everybody) == 12


@pytest.mark.parametrize("users", [(100, 103), np.array([100, 103]), pl.Series([100, 103]), ["100", "103"]])
def test_ids_in_any_list(data: Dataset, users: Any) -> None:
    assert queries_of(data, users)[0].users.tolist() == [0, 3]
    assert queries_of(data, users)[1] == [100, 103]  # as the dataset has them


def test_the_users_of_a_split(data: Dataset) -> None:
    queries, names = queries_of(data, split="test")
    assert names == data.user_ids
    assert histories(queries) == histories(eval_queries(data, "test"))
    with pytest.raises(ConfigError, match=r"unknown split 'tset' .*valid: validation, test"):
        queries_of(data, split="tset")


def test_case_d20_an_unknown_user_is_named(data: Dataset) -> None:
    with pytest.raises(DataError, match=r"unknown user_id 'ghost'.*history="):
        queries_of(data, ["ghost", 100])


@pytest.mark.parametrize("users", ["100", 100, np.int64(100)])
def test_one_id_instead_of_a_list(data: Dataset, users: Any) -> None:
    with pytest.raises(DataError, match="must be a list of user ids"):
        queries_of(data, users)


def test_histories_of_item_ids(data: Dataset) -> None:
    queries, names = queries_of(data, history=[[12, 10], np.array([11]), ["12"]])
    assert names == [0, 1, 2]
    assert histories(queries) == [[3, 1], [2], [3]]
    assert queries.users.tolist() == [-1] * 3


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([[]], "history 0 is empty"),
        ([[10], []], "history 1 is empty"),
        ([10, 11], "must be a list of lists of item ids"),
        (np.array([10, 11]), "must be a list of lists of item ids"),
        (["10", "11"], "must be a list of lists of item ids"),
        ([[10, 999]], "unknown item_id 999"),
    ],
)
def test_histories_that_cannot_be_used(data: Dataset, history: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        queries_of(data, history=history)


def test_histories_by_title(data: Dataset) -> None:
    queries, names = queries_of(data, titles=[["golden river (1951)", " Quiet River (1950) "]])
    assert histories(queries) == [[2, 1]]
    assert names == [0]
    assert title_column(data) == "title"


@pytest.mark.parametrize(
    ("titles", "message"),
    [
        (
            [["Golden Rivet (1951)"]],
            r"no item has the title 'Golden Rivet \(1951\)' \(did you mean 'golden river",
        ),
        (["Golden River (1951)"], "must be a list of lists"),
        ([[]], "titles 0 is empty"),
    ],
)
def test_titles_that_cannot_be_used(data: Dataset, titles: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        queries_of(data, titles=titles)


def test_other_names_for_titles() -> None:
    rows = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [1, 2]})
    named = pl.DataFrame({"item_id": [1, 2], "headline": ["One", "Two"]})
    data = Dataset.from_tables(rows, named, time_unit="index")
    assert title_column(data) == "headline"
    assert histories(queries_of(data, titles=[["two"]])[0]) == [[2]]
    with pytest.raises(DataError, match="have no text, so none can be found by title"):
        queries_of(Dataset.from_tables(rows, time_unit="index"), titles=[["two"]])


@pytest.mark.parametrize(
    "value", ["12", b"12", 12, 12.0, np.int64(12), {"12": 1}, None, pd.DataFrame({"a": [1]})]
)
def test_case_e11_one_value_where_a_list_is_meant(data: Dataset, value: Any) -> None:
    """The characters of "12" are no items 1 and 2."""
    for call in (
        lambda: make_rules(data, exclude=value),
        lambda: queries_of(data, history="12" if value is None else value),  # None is everybody
        lambda: queries_of(data, history=[value]),
        lambda: queries_of(data, titles=[value]),
        lambda: make_rules(data, candidates=value),
    ):
        with pytest.raises(HLLMError, match=r"must be a list|unknown candidates"):
            call()


@pytest.mark.parametrize(
    "value", [[[12]], None, True, float("nan"), 12.5, "ghost", b"12", {}, np.array([1, 2])]
)
def test_case_e11_what_is_no_id_is_named(data: Dataset, value: Any) -> None:
    with pytest.raises(DataError, match="item_id"):
        queries_of(data, history=[[value]])
    with pytest.raises(DataError, match="item_id"):
        make_rules(data, exclude=[value])
    with pytest.raises(DataError, match="title"):
        queries_of(data, titles=[[value]])


@pytest.mark.parametrize(
    "value", [12, "12", " 12 ", "12.0", 12.0, np.int8(12), np.float32(12), np.str_("12"), Decimal(12)]
)
def test_one_id_in_many_types(data: Dataset, value: Any) -> None:
    assert data.token_of(value) == data.token_of(12)


@pytest.mark.parametrize("make", [list, tuple, set, np.array, pl.Series, pd.Series])
def test_lists_of_every_kind(data: Dataset, make: Any) -> None:
    ids = make([10, 12])
    assert sorted(histories(queries_of(data, history=[ids])[0])[0]) == [1, 3]
    assert not {1, 3} & set(make_rules(data, exclude=ids).candidates.tolist())
    assert make_rules(data, candidates=ids).candidates.tolist() == [1, 3]


def test_case_e14_all_of_the_unknown_are_named_or_counted(data: Dataset) -> None:
    users = ["ghost", 100, *range(1, 13), 103]
    with pytest.raises(
        DataError, match=r"unknown user_id 'ghost', 1, 2, .*, 9, \.\.\. \(13 in all\); .*history="
    ):
        queries_of(data, users)
    left_out = LeftOut("popular")
    queries, names = queries_of(data, users, left_out=left_out)
    assert names == users
    assert queries.users.tolist() == [-1, 0, *[-1] * 12, 3]
    assert [len(h) > 0 for h in histories(queries)] == [user in (100, 103) for user in users]
    assert left_out.notes == [
        "unknown user_id 'ghost', 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (13 in all): given what is popular"
    ]
    with pytest.raises(ConfigError, match=r"unknown way with the unknown 'ignore'.*error, skip, popular"):
        LeftOut("ignore")


def test_a_history_with_an_unknown_item_is_unknown(data: Dataset) -> None:
    left_out = LeftOut("skip")
    queries, names = queries_of(
        data, None, [[12, 999, 10], [998], [], [11]], [[5, 6, 7], [1], [], None], left_out=left_out
    )
    assert histories(queries) == [[], [], [], [2]]
    assert queries.clock is not None and queries.clock.tolist() == [False, False, True, False]
    assert names == [0, 1, 2, 3]
    assert left_out.notes == [
        "unknown item_id 999, 998 (2 in all): their histories are skipped",
        "history 2 is empty: skipped",
    ]


@pytest.mark.parametrize(
    "times",
    [
        [978300060, 978303661],
        np.array([978300060, 978303661], np.int32),
        ["978300060", "978303661"],
        [datetime(2000, 12, 31, 22, 1), datetime(2000, 12, 31, 23, 1, 1, 999)],
        [datetime(2000, 12, 31, 22, 1, tzinfo=UTC), datetime(2000, 12, 31, 23, 1, 1, tzinfo=UTC)],
        ["2000-12-31 22:01:00", "2000-12-31T23:01:01Z"],
        np.array(["2000-12-31T22:01:00", "2000-12-31T23:01:01"], "datetime64[s]"),
    ],
)
def test_times_of_histories_in_any_form(data: Dataset, times: Any) -> None:
    queries, _ = queries_of(data, history=[[10, 11]], times=[times])
    assert queries.times.tolist() == [978300060, 978303661]
    assert queries.time_unit == "s"
    assert queries.clock is not None and queries.clock.all()


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([[1, 2], [3]], "2 lists of times for 1 histories"),
        ([[1]], "times 0: 1 for 2 events"),
        ([[2, 1]], "times 0 falls at event 1: 1 after 2; oldest first"),
        ([7], "must be a list of lists of times"),
        (["ab"], "must be a list of lists of times"),
        ([[1, None]], "missing|null|empty"),
        ([["yesterday", "today"]], "is not a time"),
        ([[[1], [2]]], "times"),
        ([[1, "x"]], "times 0"),
        ([[1.5, 2.0]], "1.5"),
    ],
)
def test_times_that_cannot_be_used(data: Dataset, times: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        queries_of(data, history=[[10, 11]], times=times)


def test_dates_are_no_positions(data: Dataset) -> None:
    meta = {**data.meta, "time_unit": "index"}
    with pytest.raises(DataError, match="positions without a clock"):
        queries_of(replace(data, meta=meta), history=[[10]], times=[["2000-12-31"]])


def test_known_anonymous_and_empty_in_one_call(data: Dataset) -> None:
    left_out = LeftOut("popular")
    queries, names = queries_of(
        data, [103, "ghost"], [[12, 10], []], [[7, 8], None], [["Golden River (1951)"]], left_out=left_out
    )
    assert names == [103, "ghost", -1, -2, -3]
    alone = [queries_of(data, [103])[0], queries_of(data, history=[[12, 10]], times=[[7, 8]])[0]]
    assert histories(queries)[0] == histories(alone[0])[0]
    assert histories(queries)[1:4] == [[], histories(alone[1])[0], []]
    assert queries.users.tolist() == [3, -1, -1, -1, -1]
    assert queries.clock is not None and queries.clock.tolist() == [True, True, True, False, False]
    at = slice(int(queries.starts[2]), int(queries.ends[2]))
    assert queries.times[at].tolist() == [7, 8]
    assert left_out.notes == [
        "unknown user_id 'ghost': given what is popular",
        "history -2 is empty: given what is popular",
    ]


def test_one_error_names_all_that_is_unknown(data: Dataset) -> None:
    with pytest.raises(DataError, match="unknown user_id 'ghost'; unknown item_id 999"):
        queries_of(data, ["ghost", 100], [[999]])
    with pytest.raises(DataError, match="two lists would be called '100'"):
        queries_of(data, [100], {100: [10]})
    with pytest.raises(ConfigError, match="split='test' says whom for; give it without users"):
        queries_of(data, [100], split="test")
    with pytest.raises(DataError, match="is no name of a list"):
        queries_of(data, history={None: [10]})


def test_histories_with_names(data: Dataset) -> None:
    queries, names = queries_of(data, [100], {"guest": [12, 10], "other": [11]})
    assert names == [100, "guest", "other"]
    assert histories(queries)[1:] == histories(queries_of(data, history=[[12, 10], [11]])[0])
