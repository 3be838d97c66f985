"""Canonical tables: every table library in, exact values out, errors that name the culprit."""

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hllm.data.tables.identifiers import is_integer_text
from hllm.data.tables.schema import Tables, canonical, guess_time_unit, to_tables
from hllm.errors import ConfigError, DataError

EVENTS = {"user_id": ["b", "a", "b"], "item_id": [3, 1, 2], "timestamp": [30, 10, 20]}


def events(**changes):
    return pl.DataFrame({**EVENTS, **changes})


@pytest.mark.parametrize(
    "make", [pl.DataFrame, pd.DataFrame, pa.table, pl.LazyFrame], ids=["polars", "pandas", "arrow", "lazy"]
)
def test_every_table_library_gives_the_same_rows_in_the_same_order(make):
    frame = canonical(make({**EVENTS, "rating": [1, 2, 5], "other": [0, 0, 0]}))
    assert frame.schema == {
        "user_id": pl.String,
        "item_id": pl.Int64,
        "timestamp": pl.Int64,
        "rating": pl.Float64,
    }
    assert frame.rows() == [("b", 3, 30, 1.0), ("a", 1, 10, 2.0), ("b", 2, 20, 5.0)]


def test_case_d21_pandas_strings_categories_and_nullable_integers():
    frame = pd.DataFrame(
        {
            "user_id": pd.Series(["007", "7", "x"], dtype="str"),
            "item_id": pd.Categorical(["m", "n", "m"]),
            "timestamp": pd.array([1, 2, 3], dtype="Int64"),
        }
    )
    assert canonical(frame).rows() == [("007", "m", 1), ("7", "n", 2), ("x", "m", 3)]


def test_pandas_without_pyarrow_is_read_column_by_column(monkeypatch):
    def missing(*_):
        raise ImportError("pyarrow")

    monkeypatch.setattr(pl, "from_pandas", missing)
    frame = pd.DataFrame({"item_id": [1, 2], "title": ["Up", None]})
    assert canonical(frame, "items").rows() == [(1, "Up"), (2, None)]


def test_not_a_table():
    with pytest.raises(DataError, match="pandas, polars or Arrow table, not list"):
        canonical([1, 2])


def test_mixed_types_are_named():
    frame = pd.DataFrame({**EVENTS, "user_id": [1, "a", 2]})
    with pytest.raises(DataError, match=r"'user_id' holds values of several types \(int, str\)"):
        canonical(frame)


def test_repeated_pandas_column():
    frame = pd.DataFrame([[1, 2, 3, 4]], columns=["user_id", "item_id", "timestamp", "timestamp"])
    with pytest.raises(DataError, match="'timestamp' occurs more than once"):
        canonical(frame)


def test_missing_columns_list_what_was_found_and_the_likely_ones():
    with pytest.raises(DataError) as caught:
        canonical(pl.DataFrame({"userId": [1], "movieId": [2], "ts": [3], "note": [4]}))
    message = str(caught.value)
    assert "found: userId, movieId, ts, note" in message
    assert "--user-col userId --item-col movieId --time-col ts" in message


def test_missing_time_says_what_to_do():
    with pytest.raises(DataError, match="row number as timestamp"):
        canonical(pl.DataFrame({"user_id": [1], "item_id": [2]}))


def test_columns_are_renamed_on_request_only_where_a_table_has_them():
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    tables = to_tables(
        pl.DataFrame({"who": [1], "what": [2], "when": [3]}),
        pl.DataFrame({"title": ["Up"], "what": [2]}),
        columns=columns,
    )
    assert tables.interactions.columns == ["user_id", "item_id", "timestamp"]
    assert tables.items is not None and tables.items.columns == ["item_id", "title"]
    with pytest.raises(DataError, match="no column 'whom'"):
        to_tables(events(), columns={"user_id": "whom"})
    with pytest.raises(ConfigError, match="unknown column 'usr_id'"):
        to_tables(events(), columns={"usr_id": "who"})


def test_null_time_names_column_count_and_row():
    with pytest.raises(DataError, match="'timestamp' has 2 missing values, the first in row 1"):
        canonical(events(timestamp=[1, None, None]))


def test_empty_table():
    with pytest.raises(DataError, match="no rows"):
        canonical(events().clear())


def test_seconds_in_notes_only_when_guessed():
    assert to_tables(events(), time_unit="ms").notes == []
    guessed = to_tables(events())
    assert guessed.time_unit == "index" and "time_unit=index" in guessed.notes[0]
    with pytest.raises(ConfigError, match="unknown time unit 'sec'"):
        to_tables(events(), time_unit="sec")


@pytest.mark.parametrize(
    ("value", "unit"),
    [(2_276, "index"), (978300060, "s"), (1_700_000_000_000, "ms"), (17 * 10**14, "us"), (17 * 10**17, "ns")],
)
def test_unit_from_magnitude(value, unit):
    notes: list[str] = []
    assert guess_time_unit(pl.Series([0, value]), notes) == unit
    assert len(notes) == (unit != "s")


def test_duplicate_items_and_users_keep_the_first_and_are_counted():
    tables = to_tables(
        events(),
        pl.DataFrame({"item_id": [2, 1, 2], "title": ["first", "one", "second"]}),
        pl.DataFrame({"user_id": ["a", "a"], "age": [1, 2]}),
    )
    assert tables.items is not None and tables.items.rows() == [(2, "first"), (1, "one")]
    assert tables.users is not None and tables.users.rows() == [("a", 1)]
    assert tables.counts == {"duplicate_items": 1, "duplicate_users": 1}


def test_text_fields_default_to_strings_and_lists_are_joined():
    items = pl.DataFrame({"item_id": [1], "title": ["Up"], "year": [2009], "genres": [["Drama", "Family"]]})
    tables = to_tables(events(), items)
    assert tables.text_fields == ["title", "genres"]
    assert tables.items is not None and tables.items["genres"].to_list() == ["Drama, Family"]
    chosen = to_tables(events(), items, text_fields=["year", "title"])
    assert chosen.text_fields == ["year", "title"]
    assert chosen.items is not None and chosen.items["year"].to_list() == ["2009"]
    with pytest.raises(DataError, match=r"no text column 'titel' \(did you mean 'title'\?\)"):
        to_tables(events(), items, text_fields=["titel"])
    with pytest.raises(DataError, match="need an items table"):
        to_tables(events(), text_fields=["title"])


def test_case_d12_integer_interactions_meet_string_items():
    items = pl.DataFrame({"item_id": ["3", "2", "1"], "title": ["three", "two", "one"]})
    tables = to_tables(pl.DataFrame({**EVENTS, "item_id": [1, 3, 2]}), items)
    assert tables.items is not None and tables.items.rows() == [(3, "three"), (2, "two"), (1, "one")]
    reverse = to_tables(events(item_id=["1", "3", "2"]), items.with_columns(pl.col("item_id").cast(pl.Int64)))
    assert reverse.items is not None and reverse.items["item_id"].to_list() == ["3", "2", "1"]


def test_case_d12_types_that_cannot_agree_are_both_named():
    items = pl.DataFrame({"item_id": ["3", "2", "tt1"], "title": ["three", "two", "one"]})
    with pytest.raises(
        DataError, match="item_id is int64 in the interactions but string in the items table, and 'tt1'"
    ):
        to_tables(events(), items)
    with pytest.raises(DataError, match=r"item_id is string .* int64 .* '007'"):
        to_tables(events(item_id=["007", "7", "7"]), items.with_columns(item_id=pl.Series([7, 8, 9])))


def test_tables_without_a_common_identifier():
    with pytest.raises(
        DataError, match=r"no item_id of the interactions occurs in the items table \(3, 1, 2 against 8, 9\)"
    ):
        to_tables(events(), pl.DataFrame({"item_id": [8, 9]}))


def test_case_d1_text_identifiers_keep_leading_zeros_in_all_tables():
    items = pl.DataFrame({"item_id": ["007", "7"], "title": ["Bond", "Seven"]})
    both = to_tables(events(item_id=["007", "7", "007"]), items, text_ids=True)
    assert both.interactions["item_id"].to_list() == ["007", "7", "007"]
    # Only "7" occurs: it must still mean the item written "7".
    one = to_tables(events(item_id=["7", "7", "7"]), items, text_ids=True)
    assert one.interactions["item_id"].dtype == pl.String
    plain = to_tables(
        events(item_id=["7", "8", "8"]), items.with_columns(item_id=pl.Series(["8", "7"])), text_ids=True
    )
    assert plain.interactions["item_id"].to_list() == [7, 8, 8]
    assert (
        isinstance(plain, Tables) and plain.items is not None and plain.items["item_id"].to_list() == [8, 7]
    )


@pytest.mark.parametrize("text", ["007", "+7", "7.0", "", "-0", "99999999999999999999", "٧"])
def test_what_is_not_the_text_of_an_integer(text):
    assert is_integer_text(pl.Series(["7", "-3"]))
    assert not is_integer_text(pl.Series(["7", text]))


def test_unknown_table_name():
    with pytest.raises(ConfigError, match="unknown table 'item'"):
        canonical(events(), "item")
