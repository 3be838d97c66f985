"""Files that cannot be used: one line says which file, where in it, what is wrong and what to do.

A case is a data set's name, its files, and what the message must hold. Each goes through
`hllm data prepare`: exit code 2, one line, and no dataset. Cases of all readers belong here: a new
reader adds its own to `CASES`.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hllm.cli import main
from hllm.data.sources import list_sources


@dataclass(frozen=True)
class Case:
    """`files` by name; `says`: what the error must mention, in any order; `options` as KEY=VALUE."""

    source: str
    files: dict[str, bytes]
    says: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


RATINGS = b"A1,B000000001,5.0,1001894400\nA2,B000000001,4.0,1001894401\n"
META = b"{'asin': 'B000000001', 'title': 'One'}\n{'asin': 'B000000002', 'title': 'Two'}\n"
CSV, JSON = "ratings_Books.csv", "meta_Books.json"
PACKED = gzip.compress(META * 5000)


def books(says: tuple[str, ...], ratings: bytes = RATINGS, meta: bytes = META, packed: bool = False) -> Case:
    files = {CSV: ratings, JSON + ".gz" * packed: meta}
    return Case("amazon-books", files, says, {"filter": "none"})


INTERACTIONS = b"item_id,user_id,timestamp\ni1,u1,1634567890\ni2,u1,1634567891\n"
ITEMS = b"item_id,title,tag,description\ni1,One,a,x\ni2,Two,b,y\n"


def pair(
    says: tuple[str, ...], interactions: bytes = INTERACTIONS, items: bytes = ITEMS, name: str = "pixel1m"
) -> Case:
    file = {"pixel1m": "Pixel1M.csv", "bytedance-books": "amazon_books.csv"}[name]
    return Case(name, {f"dataset/{file}": interactions, f"information/{file}": items}, says)


INTER = (
    b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t978300060\n1\t1\t3\t978300055\n"
)
ITEM = b"item_id:token\ttitle:token_seq\n1\tOne\n2\tTwo\n"


def atomic(says: tuple[str, ...], inter: bytes = INTER, item: bytes = ITEM, **options: Any) -> Case:
    return Case("recbole", {"x.inter": inter, "x.item": item}, says, options)


REVIEW = b'{"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1391040000}\n'


def beauty(says: tuple[str, ...], reviews: bytes) -> Case:
    files = {"reviews_Beauty_5.json": reviews, "meta_Beauty.json": b"{'asin': 'B1', 'title': 'One'}\n"}
    return Case("amazon-beauty", files, says)


FILMS_100K = b"1|One|01-Jan-1995||u|" + b"|".join([b"0"] * 19) + b"\n"
EVENTS_100K = b"1\t1\t3\t881250949\n2\t1\t4\t881250950\n"


def ml_100k(says: tuple[str, ...], data: bytes = EVENTS_100K, item: bytes = FILMS_100K) -> Case:
    return Case("ml-100k", {"u.data": data, "u.item": item}, says)


RATINGS_DAT, MOVIES_DAT = b"1::1::5::978300760\n1::2::3::978300761\n", b"1::One (1990)::Drama\n2::Two::War\n"


def ml_1m(
    says: tuple[str, ...], data: bytes = RATINGS_DAT, movies: bytes = MOVIES_DAT, **users: bytes
) -> Case:
    files = {"ratings.dat": data, "movies.dat": movies, **{f"{k}.dat": v for k, v in users.items()}}
    return Case("ml-1m", files, says)


RATINGS_CSV = b"userId,movieId,rating,timestamp\n1,1,2.5,1260759144\n1,3,4.0,1260759145\n"
MOVIES_CSV = b'movieId,title,genres\n1,"One, A",Drama\n3,Three,War\n'


def ml_csv(says: tuple[str, ...], data: bytes = RATINGS_CSV, movies: bytes = MOVIES_CSV) -> Case:
    return Case("ml-latest-small", {"ratings.csv": data, "movies.csv": movies}, says)


EVENTS_CSV = b"who,what,when\nu1,a,1700000000\nu1,b,1700000005\n"
THINGS_CSV = b"what,title\na,Apple\nb,Bee\n"
COLUMNS = {"user_col": "who", "item_col": "what", "time_col": "when"}


def own(
    says: tuple[str, ...],
    events: bytes = EVENTS_CSV,
    things: bytes = THINGS_CSV,
    kind: str = "csv",
    **options: Any,
) -> Case:
    """Tables with names of their own; `kind` is the ending of the interactions."""
    files = {f"interactions.{kind}": events, "items.csv": things}
    return Case("tabular", files, says, {**COLUMNS, **options})


CASES = {
    # ratings without a header
    "ratings: a line of three fields": books(
        (CSV, "line 3", "3 fields where 4"), RATINGS + b"A3,B000000001,5.0\n"
    ),
    "ratings: cut in the middle": books((CSV, "line 2", "'A2,B00000'"), RATINGS[:38]),
    "ratings: five fields": books((CSV, "line 3", "5 fields where 4"), RATINGS + b"A3,B000000001,5.0,1,2\n"),
    "ratings: a date for a time": books((CSV, "line 3", "'2004-01-02'"), RATINGS + b"A3,B1,5.0,2004-01-02\n"),
    "ratings: no time": books((CSV, "line 3", "timestamp"), RATINGS + b"A3,B000000001,5.0,\n"),
    "ratings: half a second": books((CSV, "line 3", "whole number"), RATINGS + b"A3,B1,5.0,1001894400.5\n"),
    "ratings: a time beyond 64 bits": books(
        (CSV, "line 3", "99999999999999999999"), RATINGS + b"A3,B1,1,99999999999999999999\n"
    ),
    "ratings: a word for a rating": books(
        (CSV, "line 3", "rating", "'five'"), RATINGS + b"A3,B1,five,1001894400\n"
    ),
    "ratings: no user": books((CSV, "line 3", "user_id is empty"), RATINGS + b",B000000001,5.0,1001894400\n"),
    "ratings: no item": books((CSV, "line 3", "item_id is empty"), RATINGS + b"A3,,5.0,1001894400\n"),
    "ratings: empty": books((CSV, "is empty"), b""),
    "ratings: only a header": books((CSV, "no interactions"), b"user_id,item_id,rating,timestamp\n"),
    "ratings: a header without times": books(
        (CSV, "line 1", "no column timestamp"), b"user_id,item_id,rating\nA,B,1\n"
    ),
    "ratings: two columns of items": books(
        (CSV, "line 1", "two columns for item_id"), b"user_id,item,asin,timestamp\n1,2,2,3\n"
    ),
    "ratings: the layout of 2018": books(
        (CSV, "line 1", "'B000000001'", "looks like an item", "amazon-2018"),
        b"B000000001,A1V6B6TNIC10QE,5.0,1001894400\n",
    ),
    "ratings: a workbook": books((CSV, "ZIP archive"), b"PK\x03\x04 and so on"),
    "ratings: tabs": books((CSV, "line 1", "1 field where 4"), RATINGS.replace(b",", b"\t")),
    # catalogues of literals
    "meta: cut gzip": books(
        (JSON + ".gz", "cut short", "download"), meta=PACKED[: len(PACKED) // 2], packed=True
    ),
    "meta: damaged gzip": books(
        (JSON + ".gz", "damaged", "download"), meta=PACKED[:20] + b"\xff" * 40 + PACKED[60:], packed=True
    ),
    "meta: cut line": books((JSON, "line 1", "neither JSON nor"), meta=META[:33] + b"\n" + META),
    "meta: code for a value": books(
        (JSON, "line 3", "literal"), meta=META + b"{'asin': __import__('os').name}\n"
    ),
    "meta: a list": books((JSON, "line 3", "list"), meta=META + b"['B000000001']\n"),
    "meta: a page of the web": books((JSON, "line 1", "'<html>'"), meta=b"<html>\n<body>404</body>\n"),
    "meta: of another data set": books((JSON, "none of the items"), meta=META.replace(b"B0", b"C0")),
    "meta: missing": Case(
        "amazon-books", {CSV: RATINGS}, ("meta_Books.json", CSV, "hllm data fetch"), {"filter": "none"}
    ),
    "both missing": Case(
        "amazon-books", {"readme.txt": b"x"}, ("ratings_Books.csv", "reviews_Books_5.json", "readme.txt")
    ),
    # reviews
    "reviews: not JSON": beauty(("reviews_Beauty_5.json", "line 2"), REVIEW + REVIEW[:40] + b"\n"),
    "reviews: no reviewer": beauty(
        ("line 2", "no 'reviewerID'"), REVIEW + REVIEW.replace(b"reviewerID", b"id")
    ),
    "reviews: no time": beauty(("line 1", "no 'unixReviewTime'"), REVIEW.replace(b"1391040000", b"null")),
    "reviews: a list for a time": beauty(
        ("line 1", "timestamp", "[1]"), REVIEW.replace(b"1391040000", b"[1]")
    ),
    "2018: metadata of nothing": Case(
        "amazon-2018:X",
        {"X.csv": b"B000000001,A1,5.0,1001894400\n", "meta_X.json": b"{}\n"},
        ("none of the items",),
    ),
    "2023: a header without parent_asin": Case(
        "amazon-2023:X",
        {"X.csv": b"user_id,rating,timestamp\nA1,5.0,1001894400000\n"},
        ("X.csv line 1", "no column item_id"),
    ),
    "2023: metadata of another edition": Case(
        "amazon-2023:X",
        {
            "X.csv": b"user_id,parent_asin,rating,timestamp\nA1,B1,5.0,1001894400000\n",
            "meta_X.jsonl": b"[1]\n",
        },
        ("meta_X.jsonl line 1", "a list where a record"),
    ),
    # two files of one name
    "pair: no header": pair(("Pixel1M.csv", "with interactions", "i1, u1"), INTERACTIONS.split(b"\n", 1)[1]),
    "pair: only interactions": Case(
        "pixel1m", {"Pixel1M.csv": INTERACTIONS}, ("item texts", "item_id, user_id, timestamp")
    ),
    "pair: short row": pair(("dataset", "line 4", "2 fields where 3"), INTERACTIONS + b"i1,u2\n"),
    "pair: a word for a time": pair(
        ("dataset", "line 2", "'now'"), INTERACTIONS.replace(b"1634567890", b"now")
    ),
    "items: a comma outside quotes": pair(
        ("information", "line 3", "5 fields where 4"), items=ITEMS.replace(b"Two", b"Two, too")
    ),
    "items: a quote never closed": pair(
        ("information", "line 3", "never closed"), items=ITEMS.replace(b"Two", b'"Two')
    ),
    "items: text after a quote": pair(
        ("information", "line 2", "quotes"), items=ITEMS.replace(b"One", b'"O"ne')
    ),
    "items: no title": pair(("with item texts",), items=b"title\nOne\n", name="bytedance-books"),
    "items: other columns": pair(
        ("'title'", "item_id, name"), items=b"item_id,name\ni1,One\n", name="bytedance-books"
    ),
    # atomic files
    "atomic: no types": atomic(("x.inter", "line 1", "NAME:TYPE"), INTER.replace(b":token", b"")),
    "atomic: an unknown type": atomic(
        ("line 1", "'user_id:int'", "token_seq"), INTER.replace(b"user_id:token", b"user_id:int")
    ),
    "atomic: commas": atomic(("x.inter", "line 1", "tabs"), INTER.replace(b"\t", b",")),
    "atomic: no time": atomic(("x.inter", "'timestamp'"), INTER.replace(b"timestamp", b"when")),
    "atomic: a column twice": atomic(
        ("line 1", "'rating' occurs twice"), INTER.replace(b"timestamp", b"rating")
    ),
    "atomic: a short line": atomic(
        ("x.inter", "line 4", "2 fields where the header has 4"), INTER + b"1\t2\n"
    ),
    "atomic: a word for a time": atomic(("x.inter", "line 4", "'soon'"), INTER + b"1\t2\t3\tsoon\n"),
    "atomic: a word for a rating": atomic(
        ("x.inter", "line 2", "'good'"), INTER.replace(b"\t3\t978300060", b"\tgood\t978300060")
    ),
    "atomic: no user": atomic(("x.inter", "line 4", "user_id is empty"), INTER + b"\t2\t3\t978300061\n"),
    "atomic: an item without identifier": atomic(
        ("x.item", "line 3", "item_id is empty"), item=ITEM.replace(b"2\tT", b"\tT")
    ),
    "atomic: an item line too long": atomic(
        ("x.item", "line 3", "3 fields"), item=ITEM.replace(b"Two", b"Two\tToo")
    ),
    "atomic: no interactions": Case("recbole", {"x.item": ITEM}, (".inter", "x.item")),
    "atomic: no rows": atomic(("no rows",), INTER.split(b"\n", 1)[0]),
    # MovieLens in its three layouts
    "100k: a line of three fields": ml_100k(
        ("u.data line 3", "expected user_id"), EVENTS_100K + b"2\t3\t4\n"
    ),
    "100k: a word for a time": ml_100k(("u.data line 3", "timestamp 'now'"), EVENTS_100K + b"2\t3\t4\tnow\n"),
    "100k: commas": ml_100k(("u.data line 1", "expected"), EVENTS_100K.replace(b"\t", b",")),
    "100k: cut in the middle": ml_100k(("u.data line 3", "cut short"), EVENTS_100K + b"2\t3\t"),
    "100k: empty": ml_100k(("u.data is empty",), b""),
    "100k: binary": ml_100k(("u.data", "byte 0 at offset"), EVENTS_100K + b"\0"),
    "100k: a film without flags": ml_100k(
        ("u.item line 2", "24 fields"), item=FILMS_100K + b"2|Two|x||u|0\n"
    ),
    "100k: a film without a number": ml_100k(("u.item line 1", "integer id"), item=b"x" + FILMS_100K),
    "100k: no films": Case("ml-100k", {"u.data": EVENTS_100K}, ("no u.item", "hllm data fetch ml-100k")),
    "100k: films of another data set": ml_100k(
        ("no item_id of the interactions occurs in the items table",), item=b"9" + FILMS_100K
    ),
    "1m: commas": ml_1m(("ratings.dat line 1", "user_id::item_id"), RATINGS_DAT.replace(b"::", b",")),
    "1m: a word for a rating": ml_1m(
        ("ratings.dat line 3", "rating 'x'"), RATINGS_DAT + b"1::2::x::978300762\n"
    ),
    "1m: a film of two fields": ml_1m(("movies.dat line 3", "3 fields"), movies=MOVIES_DAT + b"3::Three\n"),
    "1m: a user of two fields": ml_1m(("users.dat line 1", "5 fields"), users=b"1::F\n"),
    "csv: no header": ml_csv(("ratings.csv", "no column 'userId'"), RATINGS_CSV.split(b"\n", 1)[1]),
    "csv: half a second": ml_csv(("ratings.csv line 4", "'1.5'"), RATINGS_CSV + b"1,3,2.5,1.5\n"),
    "csv: latin-1": ml_csv(
        ("movies.csv", "0xe9", "--encoding latin-1"), movies=MOVIES_CSV + b"4,Mis\xe9,x\n"
    ),
    "csv: a film of two fields": ml_csv(
        ("movies.csv line 4", "2 fields where 3"), movies=MOVIES_CSV + b"4,Up\n"
    ),
    "csv: a word for a film": ml_csv(
        ("movies.csv", "movieId 'x' of 'Up'"), movies=MOVIES_CSV + b"x,Up,War\n"
    ),
    # anyone's tables; messages have the user's names of the columns
    "own: empty": own(("interactions.csv is empty",), b""),
    "own: only a header": own(("interactions.csv", "no rows"), EVENTS_CSV.split(b"\n")[0] + b"\n"),
    "own: other columns": own(
        ("no column 'what'", "found: who, sku, when", "--item-col NAME"), EVENTS_CSV.replace(b"what", b"sku")
    ),
    "own: two of one name": own(("'who' more than once",), EVENTS_CSV.replace(b"what", b"who")),
    "own: a word for a time": own(
        ("interactions.csv: column 'when': value 'soon' in line 4",), EVENTS_CSV + b"u1,c,soon\n"
    ),
    "own: the month before the year": own(
        ("'when'", "'05/31/2024' in line 2", "year first"), b"who,what,when\nu,a,05/31/2024\nu,b,06/01/2024\n"
    ),
    "own: half a second": own(
        ("'when'", "1.5 in line 4", "multiply by 1000", "--time-unit ms"), EVENTS_CSV + b"u1,c,1.5\n"
    ),
    "own: no time": own(("'when' has 1 missing value", "line 4"), EVENTS_CSV + b"u1,c,\n"),
    "own: no user": own(("'who' has 1 missing value", "line 4"), EVENTS_CSV + b",c,5\n"),
    "own: a short line": own(("interactions.csv line 4", "2 fields where 3"), EVENTS_CSV + b"u1,c\n"),
    "own: a word for a rating": own(
        ("column 'stars': value 'good' in line 2",),
        b"who,what,when,stars\nu1,a,1700000000,good\n",
        rating_col="stars",
    ),
    "own: no text column": own(
        ("items.csv", "'titel'", "did you mean 'title'", "found: what, title"), text_cols="titel"
    ),
    "own: items of another kind": own(("no what of the interactions",), things=b"what,title\nx,X\n"),
    "own: items without an identifier": own(
        ("items.csv", "no column 'item_id'", "--items-id-col NAME", "--no-items-header"),
        things=b"sku,title\na,A\n",
    ),
    "own: an item without an identifier": own(
        ("items.csv: items column 'what' has 1 missing value", "line 4"), things=THINGS_CSV + b",x\n"
    ),
    "own: a workbook": own(
        ("unknown kind of file", ".parquet"), kind="xlsx", interactions="interactions.xlsx"
    ),
    "own: Parquet that is none": own(("not a sound Parquet file",), b"hello", kind="parquet"),
    "own: JSON cut short": own(
        ("interactions.jsonl line 2", "not JSON"), b'{"who": 1, "what": 2, "when": 3}\n{"who', kind="jsonl"
    ),
    "own: an atomic file": own(("x.inter", "hllm data prepare recbole"), interactions="x.inter"),
    "own: nothing there": Case("tabular", {"a.csv": b"x\n"}, ("no interactions.csv", "--interactions FILE")),
    "own: cut gzip": own(("cut short", "download"), gzip.compress(EVENTS_CSV * 99)[:-20]),
}


def test_there_are_cases_of_every_reader() -> None:
    readers = {source.name: source.reader for source in list_sources()}
    assert {readers[case.source.split(":")[0]] for case in CASES.values()} == set(readers.values())
    assert len(CASES) >= 60


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_malformed(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: Case) -> None:
    raw, out = tmp_path / "raw", tmp_path / "set"
    raw.mkdir()
    for name, data in case.files.items():
        (raw / name).parent.mkdir(exist_ok=True)
        (raw / name).write_bytes(data)
    assert prepare(case.source, raw, out, case.options) == 2
    captured = capsys.readouterr()
    message = captured.err.replace(str(raw), "DIR")
    assert captured.out == ""
    assert message.startswith("error: ") and message.count("\n") == 1
    assert "Traceback" not in message and len(message) < 500
    missing = [part for part in case.says if part not in message]
    assert not missing, message
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]  # no dataset, no part of one


def prepare(source: str, folder: Path, out: Path, options: dict[str, Any]) -> int:
    pairs = [word for key, value in options.items() for word in ("--option", f"{key}={value}")]
    return main(["data", "prepare", source, "--from", str(folder), "--out", str(out), *pairs])


@pytest.mark.parametrize(
    "name", ["amazon-books", "bytedance-books", "pixel1m", "recbole", "ml-1m", "tabular"]
)
def test_folders_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / "file").write_text("x")
    for folder, says in ((tmp_path / "absent", "does not exist"), (tmp_path / "file", "is a file")):
        assert prepare(name, folder, tmp_path / "set", {}) == 2
        assert says in capsys.readouterr().err
