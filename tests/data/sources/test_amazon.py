"""Amazon's editions, from files in the published layouts with the dirt that they have."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hllm.data.dataset import Dataset
from hllm.data.reading.thinning import thin
from hllm.data.sources import amazon
from hllm.data.sources.amazon import read_amazon, read_amazon_beauty, read_amazon_books
from hllm.errors import ConfigError, DataError

RATINGS = (
    b"A3OTP0QZ7W3BB9,0001048791,5.0,1036281600\n"
    b"A1V6B6TNIC10QE,0001048791,4.0,1001894400\n"
    b"A3OTP0QZ7W3BB9,B00005N7P0,3.0,1036281600\n"
    b"A1V6B6TNIC10QE,0000913154,2.0,1365811200\n"
)
# Two known items, one without metadata (0000913154), one that nobody rated, a duplicate.
META = [
    {
        "asin": "0001048791",
        "salesRank": {"Books": 6334800},
        "imUrl": "http://ecx.images-amazon.com/images/I/51MKP0T4DBL.jpg",
        "categories": [["Books", "Plays"], ["Books", "Classics"]],
        "title": "The Crucible: &quot;Performed&quot;\nby a cast",
        "related": {"also_bought": ["0195084756", "0307394530"]},
    },
    {"asin": "0001048791", "title": "A later duplicate"},
    {"asin": "B00005N7P0", "title": "It's Kitchen & More", "description": ["One.", "Two."], "price": 4.5},
    {"asin": "0002000202", "title": "Nobody rated this"},
]


def literals(records: list[dict[str, Any]]) -> bytes:
    return b"".join(repr(record).encode() + b"\n" for record in records)


def jsons(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    (tmp_path / "ratings_Books.csv").write_bytes(RATINGS)
    (tmp_path / "meta_Books.json.gz").write_bytes(gzip.compress(literals(META)))
    return tmp_path


# ----------------------------------------------------------------------------- 2014


def test_raw_books(books: Path) -> None:
    tables = read_amazon_books(books, filter="none")
    assert tables.interactions.rows()[0] == ("A3OTP0QZ7W3BB9", "0001048791", 1036281600, 5.0)
    assert tables.interactions.columns == ["user_id", "item_id", "timestamp", "rating"]
    assert tables.text_fields == ["title", "description"]
    assert tables.time_unit == "s"
    assert tables.items is not None
    assert tables.items.rows() == [
        ("0001048791", 'The Crucible: "Performed"\nby a cast', None),
        ("B00005N7P0", "It's Kitchen & More", "One. Two."),
    ]
    assert tables.counts == {"duplicate_items": 1}
    data = Dataset.from_source_tables(tables, name="amazon-books")
    assert (data.n_users, data.n_candidates, data.n_catalogue) == (2, 3, 3)
    assert data.meta["counts"]["items_without_metadata"] == 1


def test_the_whole_catalogue_on_demand(books: Path) -> None:
    tables = read_amazon_books(books, filter="none", catalogue="all")
    assert tables.items is not None
    assert tables.items["item_id"].to_list() == ["0001048791", "B00005N7P0", "0002000202"]


def test_of_two_records_the_one_with_text_counts(books: Path) -> None:
    records = [{"asin": "0001048791"}, {"asin": "B00005N7P0"}, {"asin": "0001048791", "title": "Here"}]
    (books / "meta_Books.json.gz").write_bytes(gzip.compress(literals(records)))
    tables = read_amazon_books(books, filter="none")
    assert tables.items is not None
    assert dict(tables.items.select("item_id", "title").rows()) == {"0001048791": "Here", "B00005N7P0": None}


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: b"user_id,item_id,rating,timestamp\n" + data,
        lambda data: data.replace(b"\n", b"\n\n"),
        lambda data: data.rstrip(b"\n"),
        lambda data: b"".join(b'"%s"\n' % line.replace(b",", b'","') for line in data.splitlines()),
        lambda data: data.replace(b"1036281600", b"1036281600.0"),
        gzip.compress,
    ],
    ids=["CRLF", "BOM", "header", "blank lines", "no last end", "quoted", "float times", "gzip"],
)
def test_ratings_in_other_clothes(books: Path, change: Any) -> None:
    expected = read_amazon_books(books, filter="none").interactions
    (books / "ratings_Books.csv").write_bytes(change(RATINGS))
    assert read_amazon_books(books, filter="none").interactions.equals(expected)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [True, False])
def test_metadata_in_other_clothes(books: Path, packed: bool, bom: bytes) -> None:
    expected = read_amazon_books(books, filter="none").items
    data = bom + literals(META).replace(b"\n", b"\r\n")
    (books / "meta_Books.json.gz").unlink()
    name = "meta_Books.json.gz" if packed else "meta_Books.json"
    (books / name).write_bytes(gzip.compress(data) if packed else data)
    items = read_amazon_books(books, filter="none").items
    assert items is not None
    assert expected is not None
    assert items.equals(expected)


def test_beauty_has_five_texts(tmp_path: Path) -> None:
    """Reviews are JSON; descriptions are a string, a list or absent; users' names are ignored."""
    reviews = [
        {
            "reviewerID": "A1YJEY40YUW4SE",
            "asin": "7806397051",
            "reviewerName": "Andrea",
            "helpful": [3, 4],
            "reviewText": "Very oily",
            "overall": 1.0,
            "summary": '"Don\'t"',
            "unixReviewTime": 1391040000,
            "reviewTime": "01 30, 2014",
        },
        {"reviewerID": "A60XNB876KYML", "asin": "9759091062", "overall": 3.0, "unixReviewTime": 1397779200},
        {"reviewerID": "A60XNB876KYML", "asin": "7806397051", "overall": 3.0, "unixReviewTime": 1397779200},
    ]
    meta = [
        {
            "asin": "7806397051",
            "title": "WAWO 15 Color",
            "brand": "WAWO",
            "price": 5.1,
            "categories": [["Beauty", "Makeup", "Face"]],
        },
        {"asin": "9759091062", "description": "Pedicure & care", "price": "Call us"},
    ]
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(jsons(reviews)))
    (tmp_path / "inner" / "meta_Beauty.json").write_bytes(literals(meta))
    tables = read_amazon_beauty(tmp_path)
    assert tables.text_fields == ["title", "description", "categories", "brand", "price"]
    assert tables.items is not None
    assert tables.items.rows() == [
        ("7806397051", "WAWO 15 Color", None, "Beauty, Makeup, Face", "WAWO", "$5.10"),
        ("9759091062", None, "Pedicure & care", None, None, None),
    ]
    assert tables.interactions.rows()[2] == ("A60XNB876KYML", "7806397051", 1397779200, 3.0)


def test_both_kinds_of_events(tmp_path: Path) -> None:
    """amazon-2014 takes the ratings, amazon-beauty the 5-core reviews; what is left out is said."""
    review = {"reviewerID": "A1", "asin": "B000000001", "overall": 2.0, "unixReviewTime": 1391040000}
    (tmp_path / "ratings_Beauty.csv").write_text(
        "A1,B000000001,2.0,1391040000\nA2,B000000001,1.0,1391040001\n"
    )
    (tmp_path / "reviews_Beauty_5.json").write_bytes(jsons([review]))
    (tmp_path / "meta_Beauty.json").write_bytes(literals([{"asin": "B000000001", "title": "x"}]))
    whole = read_amazon(tmp_path, edition="2014", variant="Beauty")
    core = read_amazon_beauty(tmp_path)
    asked = read_amazon(tmp_path, edition="2014", variant="Beauty", events="reviews")
    assert (whole.interactions.height, core.interactions.height, asked.interactions.height) == (2, 1, 1)
    assert "reviews_Beauty_5.json is there too" in whole.notes[0]
    assert not asked.notes


# ----------------------------------------------------------------------------- 2018, 2023


def test_2018_has_the_item_first_and_scraps_of_pages(tmp_path: Path) -> None:
    (tmp_path / "All_Beauty.csv").write_text("0143026860,A1V6B6TNIC10QE,1.0,1424304000\n")
    meta = {
        "category": ["Beauty", "Hair", "</span></span></span> junk"],
        "tech1": "",
        "description": ["Makes hair shine.", ""],
        "title": "Shampoo &amp; Soap",
        "brand": "by\n   ACME",
        "feature": ["5 oz", "vegan"],
        "price": ".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{background-color:#fffbf3}",
        "similar_item": '<div>"asin": "0143026860"</div>',
        "asin": "0143026860",
    }
    (tmp_path / "meta_All_Beauty.json.gz").write_bytes(gzip.compress(jsons([meta])))
    tables = read_amazon(tmp_path, edition="2018", variant="All_Beauty")
    assert tables.interactions.row(0) == ("A1V6B6TNIC10QE", "0143026860", 1424304000, 1.0)
    assert tables.items is not None
    assert tables.items.row(0, named=True) == {
        "item_id": "0143026860",
        "title": "Shampoo & Soap",
        "description": "Makes hair shine.",
        "features": "5 oz, vegan",
        "categories": "Beauty, Hair",
        "brand": "ACME",
        "price": None,
    }


def test_2018_titles_made_of_script_are_none(tmp_path: Path) -> None:
    (tmp_path / "X_5.json").write_bytes(
        jsons([{"overall": 5.0, "reviewerID": "A1", "asin": "B1", "unixReviewTime": 1424304000}])
    )
    (tmp_path / "meta_X.json").write_bytes(
        jsons([{"asin": "B1", "title": "var aPageStart=(new Date()).getTime();"}])
    )
    items = read_amazon(tmp_path, edition="2018", variant="X").items
    assert items is not None
    assert items["title"].to_list() == [None]


META_2023 = {
    "main_category": "All Beauty",
    "title": "Howard LC0008 Leather",
    "features": [],
    "description": ["For leather."],
    "price": 12.9,
    "store": "Howard",
    "categories": ["Beauty"],
    "details": {"Package Dimensions": "7.1", "UPC": "617390882781"},
    "parent_asin": "B01CUPMQZE",
    "bought_together": None,
}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (
            "X.csv",
            b"user_id,parent_asin,rating,timestamp\nAGKASBHYZPGTEPO6LWZPVJWB2BVA,B01CUPMQZE,3.0,1452647382000\n",
        ),
        ("X.csv.gz", gzip.compress(b"AGKASBHYZPGTEPO6LWZPVJWB2BVA,B01CUPMQZE,3.0,1452647382000\n", mtime=0)),
        (
            "X.jsonl",
            jsons(
                [
                    {
                        "rating": 3.0,
                        "title": "Nice",
                        "images": [],
                        "asin": "B00YQ6X8EO",
                        "parent_asin": "B01CUPMQZE",
                        "user_id": "AGKASBHYZPGTEPO6LWZPVJWB2BVA",
                        "timestamp": 1452647382000,
                        "helpful_vote": 0,
                    }
                ]
            ),
        ),
    ],
)
def test_2023_in_milliseconds(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "meta_X.jsonl.gz").write_bytes(gzip.compress(jsons([META_2023])))
    tables = read_amazon(tmp_path, edition="2023", variant="X")
    assert tables.time_unit == "ms"
    assert tables.interactions.row(0) == ("AGKASBHYZPGTEPO6LWZPVJWB2BVA", "B01CUPMQZE", 1452647382000, 3.0)
    assert tables.items is not None
    expected = ("B01CUPMQZE", "Howard LC0008 Leather", "For leather.", None, "Beauty", "Howard", "$12.90")
    assert tables.items.row(0) == expected
    assert not tables.notes


def test_milliseconds_in_a_2014_file_are_noticed(books: Path) -> None:
    data = b"".join(line + b"000\n" for line in RATINGS.splitlines())
    (books / "ratings_Books.csv").write_bytes(data)
    tables = read_amazon_books(books, filter="none")
    assert tables.time_unit == "ms"
    assert "time_unit=ms" in tables.notes[0]
    assert tables.interactions["timestamp"][0] == 1036281600000


# ----------------------------------------------------------------------------- filters


def random_events(seed: int) -> pd.DataFrame:
    """A few busy users and items and many with a rating or two, in no order."""
    rng = np.random.default_rng(seed)
    users = np.minimum(rng.pareto(0.8, 600) * 3, 80).astype(int)
    items = np.minimum(rng.pareto(0.8, 600) * 3, 60).astype(int)
    return pd.DataFrame(
        {"user_id": [f"u{u}" for u in users], "item_id": [f"i{i}" for i in items], "row": range(600)}
    )


def bytedance_rule(ratings: pd.DataFrame, k: int) -> list[int]:
    """The rule as its script states it: counts of the whole file, both sides, then users once more."""
    enough_item = ratings.groupby("item_id")["row"].transform("size") >= k
    enough_user = ratings.groupby("user_id")["row"].transform("size") >= k
    ratings = ratings[enough_item & enough_user]
    return list(ratings[ratings.groupby("user_id")["row"].transform("size") >= k]["row"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 5])
def test_bytedance_filter(seed: int, k: int) -> None:
    import polars as pl

    ratings = random_events(seed)
    kept = thin(pl.from_pandas(ratings), "bytedance", k)
    assert kept["row"].to_list() == bytedance_rule(ratings, k)


@pytest.mark.parametrize("seed", range(5))
def test_k_core_filter(seed: int) -> None:
    import polars as pl

    ratings = random_events(seed)
    expected = ratings
    while True:
        users = expected.groupby("user_id")["row"].transform("size") >= 3
        items = expected.groupby("item_id")["row"].transform("size") >= 3
        if (users & items).all():
            break
        expected = expected[users & items]
    assert thin(pl.from_pandas(ratings), "k-core", 3)["row"].to_list() == list(expected["row"])


def test_the_default_of_books_is_bytedances_filter(books: Path) -> None:
    """Items below 5 may stay, users may not; texts of dropped items are not read."""
    events = [(f"u{u}", f"i{i}") for u in range(6) for i in range(5)] + [("u9", "i0"), ("u0", "rare")]
    lines = [f"{user},{item},5.0,{1_000_000_000 + n}" for n, (user, item) in enumerate(events)]
    (books / "ratings_Books.csv").write_text("\n".join(lines))
    items = [{"asin": f"i{i}", "title": f"Book {i}"} for i in range(5)] + [{"asin": "rare", "title": "Rare"}]
    (books / "meta_Books.json.gz").write_bytes(gzip.compress(literals(items)))
    tables = read_amazon_books(books)
    assert tables.interactions.height == 30
    assert tables.items is not None
    assert "rare" not in tables.items["item_id"]
    assert tables.counts["below_source_filter"] == 2
    assert "kept 30 of 32" in tables.notes[0]


def test_what_a_filter_refuses(books: Path) -> None:
    with pytest.raises(
        DataError, match=r"filter bytedance with k=5 leaves nothing \(4 rows before, 0 after\)"
    ):
        read_amazon_books(books)
    with pytest.raises(ConfigError, match=r"'kcore'.*k-core"):
        read_amazon_books(books, filter="kcore")
    with pytest.raises(ConfigError, match="k=0"):
        read_amazon_books(books, k=0)
    with pytest.raises(ConfigError, match=r"'none'.*used, all"):
        read_amazon_books(books, filter="none", catalogue="none")
    with pytest.raises(ConfigError, match=r"'stars'.*ratings, reviews"):
        read_amazon_books(books, events="stars")


# ----------------------------------------------------------------------------- specifications


def test_every_source_says_what_it_is() -> None:
    for source in amazon.SOURCES:
        assert source.licence and source.citation and source.size and source.text_fields, source.name
        assert all(url.startswith("http") for url in source.urls)
    member = next(s for s in amazon.SOURCES if s.name == "amazon-2018").with_variant("All_Beauty")
    assert member.urls[0].endswith("/All_Beauty.csv")
    assert member.files == ("All_Beauty.csv", "meta_All_Beauty.json")
    assert member.reader_options == {"edition": "2018", "variant": "All_Beauty"}
