"""One random table through every way into hllm gives one dataset."""

from __future__ import annotations

import csv
import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hllm.data.dataset import Dataset
from hllm.data.sources.recbole import read_recbole
from hllm.data.sources.tabular import read_tabular
from hllm.data.tables.schema import Tables, to_tables
from hllm.errors import DataError
from hllm.evaluate.files import evaluate_files, evaluate_frames
from hllm.recommend.additions import check_new_items

Columns = dict[str, list[Any]]

WORDS = ["&amp;", "&#233;", "&lt;", "nan", "NA", "None", "null", "NaN", "12", "1.0", "5.50", "007", "true"]
MARKS = ["[]", "['a', 'b']", "<|endoftext|>", "[ITEM]"]
PIECES = st.sampled_from([*"abZé本 \n,;'\"[]&<>{}=|\u00a0\u200b", *WORDS, *MARKS])
TEXTS = st.one_of(st.none(), st.lists(PIECES, max_size=4).map("".join))
NUMBERS = st.one_of(st.none(), st.integers(-5, 3000))
FLOATS = st.one_of(st.none(), st.sampled_from([0.5, 9.5, 2.0, 1995.0, -3.25]))
LABELS = st.one_of(
    st.none(), st.lists(st.sampled_from(["Comedy", "Drama", "Sci & Fi", None, "Sad."]), max_size=3)
)
DATES = st.one_of(st.none(), st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1)))
FLAGS = st.one_of(st.none(), st.booleans())
PADDING = st.sampled_from(["", "", "", " ", "\u00a0 "])


@st.composite
def tables(draw: st.DrawFn) -> tuple[Columns, Columns]:
    """Interactions and items as columns of Python values; ids are all numbers, or some are text."""
    n = draw(st.integers(2, 5))
    if draw(st.booleans()):
        ids: list[Any] = draw(st.lists(st.integers(-3, 99), min_size=n, max_size=n))
        row_ids = ids
    else:
        ids = [
            "x",
            *draw(st.lists(st.sampled_from(["7", "007", "7.0", "nan", "b c", "é"]), min_size=n, max_size=n)),
        ]
        row_ids = [f"{draw(PADDING)}{i}{draw(PADDING)}" for i in ids]
    events = {
        "user_id": [draw(st.sampled_from([1, 2])) for _ in ids],
        "item_id": row_ids,
        "timestamp": [draw(st.integers(0, 9)) for _ in ids],
        "rating": [draw(FLOATS) for _ in ids],
    }

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return [draw(values) for _ in ids]

    items = {
        "item_id": ids,
        "title": column(TEXTS),
        "year": column(NUMBERS),
        "price": column(FLOATS),
        "genres": column(LABELS),
        "released": column(DATES),
        "adult": column(FLAGS),
    }
    return events, items


SCHEMA = {
    "timestamp": pl.Int64,
    "rating": pl.Float64,
    "title": pl.String,
    "year": pl.Int64,
    "price": pl.Float64,
    "genres": pl.List(pl.String),
    "released": pl.Date,
    "adult": pl.Boolean,
}


def frame_of(columns: Columns) -> pl.DataFrame:
    return pl.DataFrame(
        {name: pl.Series(name, values, dtype=SCHEMA.get(name)) for name, values in columns.items()}
    )


def write_csv(path: Path, columns: Columns) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(["" if v is None else v for v in row] for row in zip(*columns.values(), strict=True))
    return path


def write_json(path: Path, columns: Columns) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, columns: Columns) -> Path:
    frame_of(columns).write_parquet(path)
    return path


def by_library(make: Callable[[Columns], Any]) -> Callable[..., Tables]:
    return lambda folder, events, items, **options: to_tables(make(events), make(items), **options)


def by_file(write: Callable[[Path, Columns], Path], ending: str) -> Callable[..., Tables]:
    def door(folder: Path, events: Columns, items: Columns, text_fields: list[str] | None = None) -> Tables:
        return read_tabular(
            interactions=write(folder / f"events.{ending}", events),
            items=write(folder / f"items.{ending}", items),
            text_cols=text_fields,
        )

    return door


DOORS: dict[str, Callable[..., Tables]] = {
    "polars": by_library(frame_of),
    "lazy": by_library(lambda columns: frame_of(columns).lazy()),
    "arrow": by_library(lambda columns: frame_of(columns).to_arrow()),
    "pandas": by_library(pd.DataFrame),
    "pandas objects": by_library(lambda columns: pd.DataFrame(columns, dtype=object)),
    "csv": by_file(write_csv, "csv"),
    "jsonl": by_file(write_json, "jsonl"),
    "parquet": by_file(write_parquet, "parquet"),
}


PROPERTY = [name for name in DOORS if name not in ("lazy", "pandas objects")]  # these take the same ways


def outcome(door: Callable[..., Tables], *arguments: Any, **options: Any) -> Any:
    """What a door makes of a table: everything of it, or that it refuses."""
    try:
        result = door(*arguments, **options)
    except DataError:
        return "refused"
    assert result.items is not None
    return (
        result.interactions.schema, result.interactions.rows(), result.items.schema, result.items.rows(),
        result.text_fields, result.counts,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:only")
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    drawn=tables(),
    fields=st.sampled_from([None, ["title"], ["price", "genres", "title", "released", "adult"]]),
)
def test_one_table_through_every_door(
    tmp_path: Path, drawn: tuple[Columns, Columns], fields: list[str] | None
) -> None:
    events, items = drawn
    found = {name: outcome(DOORS[name], tmp_path, events, items, text_fields=fields) for name in PROPERTY}
    for name, result in found.items():
        assert result == found["polars"], name
    if fields == ["title"] and found["polars"] != "refused":
        _check_recbole(tmp_path, events, items)
        _check_additions(events, items)


def _check_recbole(folder: Path, events: Columns, items: Columns) -> None:
    """The same titles from atomic files, where these can hold them."""
    if any("\n" in text for text in items["title"] if text):
        return
    for name, columns in (("inter", events), ("item", {n: items[n] for n in ("item_id", "title")})):
        types = {"title": "token_seq", "rating": "float", "timestamp": "float"}
        rows = [[f"{column}:{types.get(column, 'token')}" for column in columns]]
        rows += [["" if v is None else str(v) for v in row] for row in zip(*columns.values(), strict=True)]
        text = "".join("\t".join(row) + "\n" for row in rows)
        (folder / f"set.{name}").write_text(text, encoding="utf-8")
    expected = to_tables(frame_of(events), frame_of(items).select("item_id", "title"), text_fields=["title"])
    atomic = read_recbole(folder)
    assert atomic.items is not None and expected.items is not None
    assert atomic.items.rows() == expected.items.rows()
    assert atomic.interactions.rows() == expected.interactions.rows()


def _check_additions(events: Columns, items: Columns) -> None:
    """A new item is read as the catalogue reads it."""
    data = Dataset.from_tables(frame_of(events), frame_of(items), text_fields=["title"])
    new = {**items, "item_id": [f"new {i}" if isinstance(i, str) else i + 1000 for i in items["item_id"]]}
    added = check_new_items(data, frame_of(new))
    old = dict(data.items.select("item_id", "title").iter_rows())
    for key, title in added.select("item_id", "title").iter_rows():
        assert title == old[key.removeprefix("new ") if isinstance(key, str) else key - 1000]


# ------------------------------------------------------------------------- cases

EVENTS = {"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": [1, 2, 3]}
ODD = {
    "date": ([dt.date(1995, 11, 22), None, dt.date(1995, 1, 2)], ["1995-11-22", None, "1995-01-02"]),
    "datetime": (
        [dt.datetime(1995, 11, 22, 18, 5), None, dt.datetime(1995, 1, 2, 3, 4, 5, 500_000)],
        ["1995-11-22 18:05:00", None, "1995-01-02 03:04:05.5"],
    ),
    "midnight": ([dt.datetime(1995, 11, 22), None, dt.datetime(1995, 1, 2)], ["1995-11-22", None, "1995-01-02"]),
    "time": ([dt.time(1, 2, 3), None, dt.time(23, 0)], ["01:02:03", None, "23:00:00"]),
    "timedelta": ([dt.timedelta(1), None, dt.timedelta(0, 5)], ["1 day, 0:00:00", None, "0:00:05"]),
    "bytes": ([b"Tea", None, "Café".encode()], ["Tea", None, "Café"]),
    "lists": ([["Comedy", None, "Drama"], None, []], ["Comedy, Drama", None, None]),
    "list of numbers": ([[1, 2], None, [3]], ["1, 2", None, "3"]),
}  # fmt: skip


@pytest.mark.parametrize("make", [pl.DataFrame, lambda d: pd.DataFrame(d, dtype=object), "parquet"])
@pytest.mark.parametrize("kind", ODD)
def test_case_e3_values_of_types_nobody_thought_of(tmp_path: Path, kind: str, make: Any) -> None:
    values, expected = ODD[kind]
    items = {"item_id": [1, 2, 3], "released": values}
    if make == "parquet":
        write_parquet(tmp_path / "interactions.parquet", EVENTS)
        pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
        tables = read_tabular(tmp_path, text_cols="released")
    else:
        tables = to_tables(pl.DataFrame(EVENTS), make(items), text_fields=["released"])
    assert tables.items is not None
    assert tables.items["released"].to_list() == expected
    assert len(Dataset.from_source_tables(tables, name="odd").fingerprint) == 64
    assert to_tables(pl.DataFrame(EVENTS), pl.DataFrame(items)).text_fields == ["released"]


def test_case_e3_decimals_are_numbers_or_their_text() -> None:
    from decimal import Decimal

    for make in (pl.DataFrame, pd.DataFrame):
        items = make({"item_id": [1, 2, 3], "price": [Decimal("9.50"), None, Decimal("10.00")]})
        numbers = to_tables(pl.DataFrame(EVENTS), items).items
        texts = to_tables(pl.DataFrame(EVENTS), items, text_fields=["price"]).items
        assert numbers is not None and numbers["price"].to_list() == [9.5, None, 10.0]
        assert texts is not None and texts["price"].to_list() == ["9.50", None, "10.00"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [b"\xff\xfe", b"a", b"b"],
            "items column 'x' holds bytes that are no UTF-8 text, the first in row 0",
        ),
        ([{"a": 1}, None, None], "items column 'x' holds records"),
        ([1, "a", dt.date(2020, 1, 1)], r"column 'x' holds values of several types \(date, int, str\)"),
        ([object(), None, None], "column 'x' holds object values"),
    ],
)
def test_case_e3_what_cannot_be_read_names_the_column(values: list[Any], message: str) -> None:
    items = pd.DataFrame({"item_id": [1, 2, 3], "x": pd.Series(values, dtype=object)})
    with pytest.raises(DataError, match=message):
        to_tables(pl.DataFrame(EVENTS), items, text_fields=["x"])


def test_columns_of_several_levels_are_refused() -> None:
    frame = pd.DataFrame({("item", "id"): [1], ("item", "title"): ["a"]})
    with pytest.raises(DataError, match="columns have 2 levels"):
        to_tables(pl.DataFrame(EVENTS), frame)


def test_case_e4_half_a_surrogate_pair(tmp_path: Path) -> None:
    titles = ["Tea \ud83d", "Cup \U0001f600", "Pot"]
    items = {"item_id": [1, 2, 3], "title": titles}
    write_csv(tmp_path / "events.csv", EVENTS)
    events = pl.DataFrame(EVENTS)
    by_json = read_tabular(
        interactions=tmp_path / "events.csv", items=write_json(tmp_path / "i.jsonl", items)
    )
    array = tmp_path / "i.json"
    array.write_text(json.dumps([{"item_id": i, "title": t} for i, t in zip([1, 2, 3], titles, strict=True)]))
    by_array = read_tabular(interactions=tmp_path / "events.csv", items=array)
    by_pandas = to_tables(events, pd.DataFrame({k: pd.Series(v, dtype=object) for k, v in items.items()}))
    for tables in (by_json, by_array, by_pandas):
        assert tables.items is not None
        assert tables.items["title"].to_list() == ["Tea \ufffd", "Cup \U0001f600", "Pot"]
        assert tables.counts == {"texts_with_replaced_characters": 1}
    ids = pd.DataFrame({**EVENTS, "item_id": pd.Series(["a\ud83d", "b", "c"], dtype=object)})
    assert to_tables(ids).counts == {"ids_with_replaced_characters": 1}


def test_case_e9_added_items_are_read_as_the_catalogue(tmp_path: Path) -> None:
    titles = ["Salt &amp; Pepper 1", "nan", None]
    genres = [["Comedy", "Drama"], ["Sci & Fi", None], None]
    items = {"item_id": [1, 2, 3], "title": titles, "genres": genres}
    by_csv = read_tabular(
        interactions=write_csv(tmp_path / "e.csv", EVENTS), items=write_csv(tmp_path / "i.csv", items)
    )
    data = Dataset.from_source_tables(by_csv, name="csv")
    expected = [("Salt & Pepper 1", "Comedy, Drama"), ("nan", "Sci & Fi"), (None, None)]
    assert data.items.select("title", "genres").rows() == expected
    new = check_new_items(data, pl.DataFrame({**items, "item_id": [11, 12, 13]}))
    assert new.select("title", "genres").rows() == expected
    counts: dict[str, int] = {}
    twice = check_new_items(data, pl.DataFrame({"item_id": [7, 7, 7], "title": [None, "a", "b"]}), counts)
    assert twice["title"].to_list() == ["a"] and counts == {"duplicate_items": 2}


def test_case_e10_one_and_one_point_zero(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("user_id,item_id\n1,10\n2,20\n")
    recs = tmp_path / "recs.csv"
    recs.write_text("user_id,item_id,rank\n1.0,10.0,1\n2.0,20.0,1\n")
    assert evaluate_files(recs, truth, ks=[1], bootstrap=0)["hr@1"] == 1.0
    floats = pd.DataFrame({"user_id": [1.0, 2.0], "item_id": [10.0, 20.0]})
    assert evaluate_frames(floats, pl.read_csv(truth), ks=[1], bootstrap=0)["hr@1"] == 1.0
    recs.write_text("user_id,item_id,rank\n 1 ,10,1\n2,\u00a020,1\n")
    assert evaluate_files(recs, truth, ks=[1], bootstrap=0)["hr@1"] == 1.0


@pytest.mark.parametrize(
    ("recs", "message"),
    [
        (
            "u1,10\nu2,20\n",
            r"no users of .* occurs in .* \('1', '2' against 'u1', 'u2'\)|'u1', 'u2' against '1'",
        ),
        ("1,i10\n2,i20\n", "no items of .*i10.*10|no items of .*10.*i10"),
        ("01,10\n02,20\n", "no users of"),
    ],
)
def test_case_e10_ids_that_share_nothing(tmp_path: Path, recs: str, message: str) -> None:
    (tmp_path / "truth.csv").write_text("user_id,item_id\n1,10\n2,20\n")
    (tmp_path / "recs.csv").write_text("user_id,item_id\n" + recs)
    with pytest.raises(DataError, match=message):
        evaluate_files(tmp_path / "recs.csv", tmp_path / "truth.csv", ks=[1])


def test_ids_that_share_less_than_half_are_a_warning() -> None:
    truth = pl.DataFrame({"user_id": list("abc"), "item_id": list("xyz")})
    recs = pl.DataFrame({"user_id": list("aBC"), "item_id": list("xyz")})
    with pytest.warns(UserWarning, match=r"only 1 of 3 users .* \('B', 'C' against 'a', 'b', 'c'\)"):
        evaluate_frames(recs, truth, ks=[1], bootstrap=0)
    items = pl.DataFrame({"item_id": [1, 8, 9], "title": list("abc")})
    with pytest.warns(
        UserWarning, match=r"only 1 of 3 item_id of the interactions .* \(2, 3 against 1, 8, 9\)"
    ):
        tables = to_tables(pl.DataFrame(EVENTS), items)
    assert any("only 1 of 3 item_id" in note for note in tables.notes)


def test_case_e13_items_under_the_usual_name() -> None:
    events = pl.DataFrame(EVENTS).rename({"item_id": "movieId"})
    items = pl.DataFrame({"item_id": [1, 2, 3], "title": list("abc")})
    data = Dataset.from_tables(events, items, columns={"item_id": "movieId"})
    assert data.items["title"].to_list() == ["a", "b", "c"]
    both = items.with_columns(movieId=pl.Series([3, 2, 1]))
    assert Dataset.from_tables(events, both, columns={"item_id": "movieId"}).items["title"].to_list() == list(
        "cba"
    )


def test_words_for_nothing_are_text(tmp_path: Path) -> None:
    words = ["NA", "nan", "None", "null", "NaN", "N/A"]
    events = {"user_id": words, "item_id": words, "timestamp": list(range(6))}
    items = {"item_id": words, "title": words}
    for door in DOORS.values():
        tables = door(tmp_path, events, items)
        assert tables.items is not None and tables.items.rows() == [(w, w) for w in words]
        assert tables.interactions["user_id"].to_list() == words


def test_of_items_given_twice_the_first_with_a_text_wins(tmp_path: Path) -> None:
    items = {"item_id": [1, 2, 1, 3, 1], "title": [None, "two", "one", " ", "uno"]}
    for door in DOORS.values():
        tables = door(tmp_path, EVENTS, items)
        assert tables.items is not None and tables.items.rows() == [(2, "two"), (1, "one"), (3, None)]
        assert tables.counts == {"duplicate_items": 2}


def test_events_given_twice_are_kept_and_counted_or_dropped() -> None:
    twice = pl.DataFrame({**EVENTS, "rating": [5, 4, 5]})
    twice = pl.concat([twice, twice.with_columns(rating=pl.lit(1, dtype=pl.Int64))])
    kept = Dataset.from_tables(twice)
    dropped = Dataset.from_tables(twice, drop_duplicates=True)
    assert (len(kept.tokens), kept.meta["counts"]["duplicate_interactions"]) == (6, 3)
    assert (len(dropped.tokens), dropped.meta["counts"]["dropped_duplicates"]) == (3, 3)
    assert dropped.interactions["rating"].to_list() == [5, 4, 5]
    once = twice.head(3)
    assert "drop_duplicates" not in Dataset.from_tables(once).meta["filters"]
    assert (
        Dataset.from_tables(once).fingerprint != Dataset.from_tables(once, drop_duplicates=True).fingerprint
    )
