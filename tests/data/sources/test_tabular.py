"""Anyone's tables: formats, columns, identifiers, times, dirt, and refusals of one line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hllm.data.sources.tabular import read_tabular
from hllm.data.tables.schema import Tables
from hllm.errors import ConfigError, DataError, HLLMError

EVENTS = "user_id,item_id,timestamp\nu1,a,1700000000\nu1,b,1700000005\nu2,c,1700000003\n"
ITEMS = "item_id,title,year\na,Apple,1999\nb,Bee,2001\nc,Sea,2003\n"


def read(
    folder: Path, events: str | bytes = EVENTS, items: str | bytes | None = ITEMS, **options: Any
) -> Tables:
    """Read interactions.csv and items.csv with this content."""
    for name, content in (("interactions.csv", events), ("items.csv", items)):
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_tabular(folder, **options)


def items_of(tables: Tables) -> list[tuple[Any, ...]]:
    assert tables.items is not None
    return tables.items.rows()


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user_id,age,zip\nu1,30,02460\nu2,41,85711\n")
    tables = read(tmp_path)
    assert tables.interactions.rows() == [
        ("u1", "a", 1700000000),
        ("u1", "b", 1700000005),
        ("u2", "c", 1700000003),
    ]
    assert items_of(tables) == [("a", "Apple", 1999), ("b", "Bee", 2001), ("c", "Sea", 2003)]
    assert tables.text_fields == ["title"]  # the year is a number
    assert tables.users is not None
    assert tables.users.rows() == [("u1", 30, "02460"), ("u2", 41, "85711")]
    assert (tables.time_unit, tables.notes) == (
        "s",
        ["timestamps look like clock times in seconds: time_unit=s"],
    )


def test_case_d1_identifiers_keep_their_zeros(tmp_path: Path) -> None:
    """Case D1."""
    tables = read(
        tmp_path,
        "user_id,item_id,timestamp\nu1,007,1\nu1,7,2\nu1,007,3\n",
        "item_id,title\n007,Bond\n7,Seven\n",
    )
    assert tables.interactions["item_id"].to_list() == ["007", "7", "007"]
    assert items_of(tables) == [("007", "Bond"), ("7", "Seven")]


def test_integer_identifiers_become_integers(tmp_path: Path) -> None:
    tables = read(
        tmp_path, "user_id,item_id,timestamp\n5,10,1\n5,-2,2\n", "item_id,title\n10,Ten\n-2,Minus\n"
    )
    assert tables.interactions.rows() == [(5, 10, 1), (5, -2, 2)]
    assert items_of(tables) == [(10, "Ten"), (-2, "Minus")]


def write_kind(path: Path, frame: pl.DataFrame) -> None:
    zipped, path = path, path.with_name(path.name.removesuffix(".gz"))
    kind = path.suffix.removeprefix(".")
    writers = {"parquet": frame.write_parquet, "jsonl": frame.write_ndjson}
    separators = {"csv": ",", "tsv": "\t", "txt": ";", "dat": "|"}
    if kind in writers:
        writers[kind](path)
    else:
        frame.write_csv(path, separator=separators[kind])
    if zipped != path:
        zipped.write_bytes(gzip.compress(path.read_bytes()))


@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "dat", "jsonl", "parquet", "csv.gz", "jsonl.gz"])
def test_every_format_gives_the_same_tables(tmp_path: Path, kind: str) -> None:
    expected = read(tmp_path)
    events, items = tmp_path / f"e.{kind}", tmp_path / f"i.{kind}"
    write_kind(events, expected.interactions)
    assert expected.items is not None
    write_kind(items, expected.items)
    tables = read_tabular(interactions=events, items=items)
    assert tables.interactions.equals(expected.interactions)
    assert tables.items is not None and tables.items.equals(expected.items)
    assert tables.text_fields == ["title"]


def test_json_array_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "events.json"
    file.write_text(
        '[{"user_id": 1, "item_id": "7", "timestamp": 5}, {"user_id": 2, "item_id": "08", "timestamp": 6}]'
    )
    tables = read_tabular(interactions=file)
    assert tables.interactions.rows() == [(1, "7", 5), (2, "08", 6)]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    """Strings of a typed format stay strings, and datetimes bring their unit."""
    frame = pl.DataFrame({"user_id": ["1"], "item_id": ["7"], "timestamp": pl.Series([1_700_000_000_123])})
    frame = frame.with_columns(pl.col("timestamp").cast(pl.Datetime("ms")))
    frame.write_parquet(tmp_path / "interactions.parquet")
    tables = read_tabular(tmp_path)
    assert tables.interactions.rows() == [("1", "7", 1_700_000_000_123)]
    assert tables.time_unit == "ms"


def test_case_d12_integer_parquet_meets_csv_items(tmp_path: Path) -> None:
    """Case D12: items as text in another order."""
    pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 3, 2], "timestamp": [1, 2, 3]}).write_parquet(
        tmp_path / "interactions.parquet"
    )
    (tmp_path / "items.csv").write_text("item_id,title\n3,Three\n2,Two\n1,One\n")
    assert items_of(read_tabular(tmp_path)) == [(3, "Three"), (2, "Two"), (1, "One")]


def test_columns_by_option(tmp_path: Path) -> None:
    """The tables may name their identifiers alike or not; text columns come in the order asked for."""
    events = "who,what,when,stars\nu1,a,5,4.5\nu1,b,6,3\n"
    names = {"user_col": "who", "item_col": "what", "time_col": "when", "rating_col": "stars"}
    same = "what,title,desc\na,Apple,red\nb,Bee,small\n"
    for items in (same, same.replace("what", "item_id")):
        tables = read(tmp_path, events, items, text_cols="desc, title", **names)
        assert tables.interactions.rows() == [("u1", "a", 5, 4.5), ("u1", "b", 6, 3.0)]
        assert tables.text_fields == ["desc", "title"]
        assert items_of(tables)[0] == ("a", "Apple", "red")


def test_text_columns_are_not_turned_into_numbers(tmp_path: Path) -> None:
    tables = read(
        tmp_path, items="item_id,title,price\na,1984,5.50\nb,300,2.00\n", text_cols=["title", "price"]
    )
    assert items_of(tables) == [("a", "1984", "5.50"), ("b", "300", "2.00")]


def test_no_header(tmp_path: Path) -> None:
    tables = read(
        tmp_path,
        "A1,a,5.0,1383264000\nA1,b,4.0,1383264001\n",
        header=False,
        user_col="1",
        item_col="2",
        rating_col="3",
        time_col="4",
    )
    assert tables.interactions.rows() == [("A1", "a", 1383264000, 5.0), ("A1", "b", 1383264001, 4.0)]


def test_file_order_as_time(tmp_path: Path) -> None:
    tables = read(tmp_path, "user_id,item_id\nu1,b\nu1,a\n", time_col="none")
    assert tables.interactions.rows() == [("u1", "b", 0), ("u1", "a", 1)]
    assert (tables.time_unit, tables.notes) == ("index", [])
    with pytest.raises(ConfigError, match="row numbers have no unit"):
        read(tmp_path, "user_id,item_id\nu1,b\n", time_col="none", time_unit="ms")


@pytest.mark.parametrize(
    ("times", "expected", "unit", "noted"),
    [
        (("1700000000", "1700000001"), [1_700_000_000, 1_700_000_001], "s", True),
        (("1700000000001", "1700000000000"), [1_700_000_000_001, 1_700_000_000_000], "ms", True),
        (("1700000000000001", "1"), [1_700_000_000_000_001, 1], "us", True),
        (("3", "0"), [3, 0], "index", True),
        (("978300060.0", "978300055.0"), [978_300_060, 978_300_055], "s", True),
        (("2024-05-31 18:00:00", "2024-06-01"), [1_717_178_400_000_000, 1_717_200_000_000_000], "us", False),
        (("2024-05-31T18:00:00Z", "2024-05-31T18:00:00.5Z"),
         [1_717_178_400_000_000, 1_717_178_400_500_000], "us", False),
    ],
)  # fmt: skip
def test_times(tmp_path: Path, times: tuple[str, str], expected: list[int], unit: str, noted: bool) -> None:
    events = "user_id,item_id,timestamp\n" + "".join(
        f"u1,{i},{t}\n" for i, t in zip("ab", times, strict=True)
    )
    tables = read(tmp_path, events)
    assert tables.interactions["timestamp"].to_list() == expected
    assert tables.time_unit == unit
    assert bool(tables.notes) == noted


def test_case_d3_near_times_stay_apart(tmp_path: Path) -> None:
    """Case D3: equal as 32-bit floats."""
    tables = read(
        tmp_path, "user_id,item_id,timestamp\nu,c,978300060\nu,b,978300055\nu,a,978300019\n", items=None
    )
    assert tables.interactions["timestamp"].to_list() == [978_300_060, 978_300_055, 978_300_019]


def test_time_unit_by_option(tmp_path: Path) -> None:
    tables = read(tmp_path, "user_id,item_id,timestamp\nu1,a,1700000000001\n", time_unit="s")
    assert (tables.time_unit, tables.notes) == ("s", [])


def test_dirty_text(tmp_path: Path) -> None:
    items = (
        "item_id,title,description\r\n"
        'a,Salt &amp; Pepper,"first\r\nsecond, &quot;third&quot;"\r\n'
        'b,"The ""Burbs""","[\'one\', \'two\']"\r\n'
        "c,NaN,[]\r\n"
        "a,again,\r\n"
    )
    tables = read(tmp_path, items=b"\xef\xbb\xbf" + items.encode())
    assert items_of(tables) == [
        ("a", "Salt & Pepper", 'first\nsecond, "third"'),
        ("b", 'The "Burbs"', "one, two"),
        ("c", "NaN", None),  # a word, and an empty list
    ]
    assert tables.counts["duplicate_items"] == 1
    assert any("1 values written as lists" in note for note in tables.notes)


def test_case_d4_lone_quotes(tmp_path: Path) -> None:
    """Case D4 in a file of our own naming."""
    (tmp_path / "i.tsv").write_text('item_id\ttitle\na\tThe "Burbs\nb\tUp\nc\t5" Disk\n')
    read(tmp_path)
    tables = read_tabular(tmp_path, items="i.tsv")
    assert items_of(tables) == [("a", 'The "Burbs'), ("b", "Up"), ("c", '5" Disk')]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    tables = read(tmp_path, EVENTS.encode(encoding), ITEMS.replace("Apple", "Äpfel").encode(encoding))
    assert items_of(tables)[0] == ("a", "Äpfel", 1999)


def test_encoding_option(tmp_path: Path) -> None:
    items = ITEMS.replace("Apple", "Äpfel").encode("latin-1")
    assert items_of(read(tmp_path, items=items, encoding="latin-1"))[0][1] == "Äpfel"
    with pytest.raises(ConfigError, match="unknown encoding 'latin-99'"):
        read(tmp_path, items=items, encoding="latin-99")


def test_natural_titles(tmp_path: Path) -> None:
    tables = read(tmp_path, items='item_id,title\na,"Sting, The (1973)"\n', natural_titles=True)
    assert items_of(tables) == [("a", "The Sting (1973)")]


BAD: dict[str, tuple[str | bytes, str | bytes | None, dict[str, Any], str]] = {
    "empty": ("", ITEMS, {}, r"interactions.csv is empty"),
    "header only": ("user_id,item_id,timestamp\n", ITEMS, {}, "interactions.csv: .*no rows"),
    "binary": (b"user_id,item_id\0\n", ITEMS, {}, "byte 0 at offset 15"),
    "zip": (b"PK\x03\x04", ITEMS, {}, "ZIP archive or an Excel workbook"),
    "parquet under another name": (b"PAR1", ITEMS, {}, "is a Parquet file, not a text file"),
    "damaged gzip": (b"\x1f\x8bnothing", ITEMS, {}, "damaged gzip|cut short"),
    "cut gzip": (gzip.compress(EVENTS.encode() * 99)[:-20], ITEMS, {}, "cut short: its gzip stream"),
    "latin-1": (
        EVENTS,
        b"item_id,title\na,Mis\xe9rables\n",
        {},
        "items.csv is not utf-8: .*offset 19 .*latin-1",
    ),
    "no such column": (
        EVENTS.replace("item_id", "movieId"),
        ITEMS,
        {},
        "found: user_id, movieId.*--item-col movieId",
    ),
    "amazon's names": (
        "reviewerID,asin,unixReviewTime\nu,a,1\n",
        ITEMS,
        {},
        "--user-col reviewerID --item-col asin --time-col unixReviewTime",
    ),
    "items without id": (EVENTS, "parent_asin,title\na,A\n", {}, "items.csv: .*--items-id-col parent_asin"),
    "misspelt option": (EVENTS, ITEMS, {"user_col": "userid"}, "no column 'userid'"),
    "no time": ("user_id,item_id\nu,a\n", ITEMS, {}, "--time-col none"),
    "no header": ("A1,7,5.0,1383264000\nA1,8,4.0,1383264000\n", ITEMS, {}, "--no-header --user-col 1"),
    "text column": (EVENTS, ITEMS, {"text_cols": "titel"}, "did you mean 'title'"),
    "time": (EVENTS + "u1,d,soon\n", ITEMS, {}, "interactions.csv: timestamp 'soon' in line 5"),
    "missing time": (EVENTS + "u1,d,\n", ITEMS, {}, "1 missing value, the first in line 5"),
    "fraction of a second": (EVENTS + "u1,d,1.5\n", ITEMS, {}, "1.5 in line 5 is not a whole number"),
    "missing id": (EVENTS + ",d,5\n", ITEMS, {}, "'user_id' has 1 missing value"),
    "rating": ("user_id,item_id,timestamp,rating\nu,a,1,good\n", ITEMS, {}, "rating 'good' in line 2"),
    "unit": (EVENTS, ITEMS, {"time_unit": "sec"}, "unknown time unit 'sec'"),
    "uneven": (EVENTS + "u1,d\n", ITEMS, {}, "interactions.csv line 5: 2 fields where 3"),
    "other items": (EVENTS, "item_id,title\nx,X\n", {}, "no item_id of the interactions occurs"),
    "other users": (EVENTS, ITEMS, {"users": "absent.csv"}, "absent.csv not found"),
    "delimiter": (EVENTS, ITEMS, {"delimiter": '"'}, "delimiter"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(tmp_path: Path, name: str) -> None:
    events, items, options, message = BAD[name]
    with pytest.raises(HLLMError, match=message) as caught:
        read(tmp_path, events, items, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.jsonl", b'{"user_id": 1}\n{"user', "e.jsonl line 2: not JSON .*cut short"),
        ("e.jsonl", b"3\n", "line 1: not a JSON object"),
        ("e.json", b"[1, 2", "is not JSON"),
        ("e.json", b"[1, 2]", "e.json"),
        ("e.parquet", b"hello", "not a sound Parquet file"),
        ("e.xlsx", b"PK", "unknown kind of file; valid endings"),
    ],
)
def test_bad_files_of_other_kinds(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_tabular(interactions=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(EVENTS)
    with pytest.raises(DataError, match=r"no interactions\.csv.*ratings\.csv.*--interactions FILE"):
        read_tabular(tmp_path)
    with pytest.raises(DataError, match="no interactions: pass"):
        read_tabular()
    with pytest.raises(DataError, match=r"rating\.csv not found.*did you mean 'ratings\.csv'"):
        read_tabular(interactions=tmp_path / "rating.csv")
    with pytest.raises(DataError, match="is a folder"):
        (tmp_path / "x.csv").mkdir()
        read_tabular(interactions=tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"x\.parquet not found"):
        read_tabular(interactions=tmp_path / "x.parquet")


def test_real_catalogue(shared_data: Path) -> None:
    tables = read_tabular(shared_data / "amazon-industrial")
    assert tables.items is not None
    assert (tables.interactions.height, tables.items.height) == (22_743, 3_686)
    assert tables.text_fields == ["title", "description"]
    assert tables.items["description"].null_count() == 232
    # What remains are lists with broken quotes, left as they are published.
    assert tables.items["description"].str.starts_with("['").sum() == 14
    assert any("3,438 values written as lists" in note for note in tables.notes)


def test_tables_may_call_their_identifiers_differently(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("who,what,when\nu1,a,1700000000\nu2,b,1700000005\n")
    (tmp_path / "things.csv").write_text("name,sku\nApple,a\nBee,b\n")
    (tmp_path / "people.csv").write_text("age,key\n30,u1\n41,u2\n")
    files = {"interactions": "events.csv", "items": "things.csv", "users": "people.csv"}
    columns = {"user_col": "who", "item_col": "what", "time_col": "when"}
    tables = read_tabular(tmp_path, **files, **columns, items_id_col="sku", users_id_col="key")
    assert tables.interactions.rows() == [("u1", "a", 1700000000), ("u2", "b", 1700000005)]
    assert items_of(tables) == [("a", "Apple"), ("b", "Bee")]
    assert tables.users is not None
    assert tables.users.rows() == [("u1", 30), ("u2", 41)]


def test_nothing_has_a_header(tmp_path: Path) -> None:
    events, things = tmp_path / "e.tsv", tmp_path / "i.tsv"
    events.write_text("u1\ta\t5\t1700000000\nu2\tb\t4\t1700000005\n")
    things.write_text("a\tApple\nb\tBee\n")
    options: dict[str, Any] = {"interactions": events, "items": things, "header": False}
    options |= {"user_col": "1", "item_col": "2", "time_col": "4", "rating_col": "3"}
    with pytest.raises(DataError, match="--no-items-header --items-id-col 1"):
        read_tabular(**options)
    tables = read_tabular(**options, items_header=False, items_id_col="1")
    assert items_of(tables) == [("a", "Apple"), ("b", "Bee")]
    assert tables.interactions["rating"].to_list() == [5.0, 4.0]


@pytest.mark.parametrize(
    ("events", "options", "message"),
    [
        ("who,what,when\nu,a,1\n", {}, r"--user-col NAME --item-col NAME --time-col NAME$"),
        ("who,movieId,when\nu,a,1\n", {}, r"--user-col NAME --item-col movieId --time-col NAME$"),
        ("A1,7,1383264000\nA1,8,1383264000\n", {}, "--no-header --user-col 1 --item-col 2 --time-col 3"),
        ("who,item_id,timestamp\nu,a,x\n", {"user_col": "who"}, "timestamp 'x' in line 2 is not a time"),
        ("user_id,item_id,at\nu,a,x\n", {"time_col": "at"}, "column 'at': value 'x' in line 2 is not a time"),
        ("user_id,item_id,timestamp\nu,a,03/04/2024\n", {}, "'03/04/2024' in line 2 .* year first"),
    ],
)
def test_messages_speak_the_users_names(
    tmp_path: Path, events: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, events, **options)
    assert "columns=" not in str(caught.value)  # the command line's words only
