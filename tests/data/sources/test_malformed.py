"""Files that cannot be used: one line says which file, where in it, what is wrong and what to do.

A case is a data set's name, its files, and what the message must hold. Cases of all readers
belong here: a new reader adds its own to `CASES`.
"""

from __future__ import annotations

import gzip
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hllm.data.sources import amazon, bytedance, pixelrec, recbole
from hllm.data.sources.spec import Source
from hllm.errors import DataError

READERS = {
    source.name: source for module in (amazon, bytedance, pixelrec, recbole) for source in module.SOURCES
}


@dataclass(frozen=True)
class Case:
    """`files` by name; `says`: what the error must mention, in any order; `options` of the reader."""

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
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_malformed(tmp_path: Path, case: Case) -> None:
    for name, data in case.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        read(READERS[case.source], tmp_path, case.options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    missing = [part for part in case.says if part not in message.replace(str(tmp_path), "DIR")]
    assert not missing, message


def read(source: Source, folder: Path, options: dict[str, Any]) -> None:
    """Read as `hllm data prepare` does, up to the tables."""
    module, function = source.reader.split(":")
    getattr(importlib.import_module(module), function)(folder, **source.reader_options, **options)


@pytest.mark.parametrize("name", ["amazon-books", "bytedance-books", "pixel1m", "recbole"])
def test_folders_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    for folder, says in ((tmp_path / "absent", "does not exist"), (tmp_path / "file", "is a file")):
        with pytest.raises(DataError, match=says):
            read(READERS[name], folder, {})
