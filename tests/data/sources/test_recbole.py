"""RecBole's atomic files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hllm.data.dataset import Dataset
from hllm.data.sources.recbole import read_recbole
from hllm.errors import DataError

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "1\t2\t3\t978300060\n1\t1\t3.5\t978300055.0\n"
)
ITEM = (
    "item_id:token\ttitle:token_seq\tyear:token\tprice:float\tvec:float_seq\tgenre:token_seq\n"
    '1\tThe "Burbs\t1989\t1.5\t0.1 0.2\tComedy Horror\n'
    "2\tMatrix, The (1999)\t\t\t\t\n"
    '3\t5" Disk\tx\t2\t\t"A"\n'
)
USER = "user_id:token\tage:float\tgender:token\n1\t24\tM\n"


def write(folder: Path, **parts: str) -> Path:
    for part, text in parts.items():
        (folder / f"x.{part}").write_text(text, encoding="utf-8")
    return folder


def test_three_files(tmp_path: Path) -> None:
    tables = read_recbole(write(tmp_path, inter=INTER, item=ITEM, user=USER))
    assert tables.interactions.rows() == [(1, 2, 978300060, 3.0), (1, 1, 978300055, 3.5)]
    assert tables.items is not None
    assert tables.items.columns == ["item_id", "title", "year", "price", "vec", "genre"]
    assert tables.items.row(0) == (1, 'The "Burbs', "1989", 1.5, "0.1 0.2", "Comedy Horror")
    assert tables.text_fields == ["title", "genre"]
    assert tables.users is not None
    assert tables.users.rows() == [(1, 24.0, "M")]
    assert Dataset.from_source_tables(tables, name="x").n_catalogue == 3


def test_case_d4_lone_quotes_are_text(tmp_path: Path) -> None:
    """Case D4: three items, quotes kept."""
    item = 'item_id:token\ttitle:token_seq\n1\tThe "Burbs\n2\tUp\n3\t5" Disk\n'
    items = read_recbole(write(tmp_path, inter=INTER, item=item)).items
    assert items is not None
    assert items["title"].to_list() == ['The "Burbs', "Up", '5" Disk']


def test_case_d3_times_are_exact(tmp_path: Path) -> None:
    """Case D3: three times that are equal as 32-bit floats."""
    head = INTER.splitlines()[0]
    rows = "".join(f"u\t{i}\t1\t{t}\n" for i, t in (("c", 978300060), ("b", 978300055), ("a", 978300019)))
    data = Dataset.from_source_tables(read_recbole(write(tmp_path, inter=f"{head}\n{rows}")), name="x")
    assert [data.item_ids[t - 1] for t in data.tokens] == ["a", "b", "c"]
    assert data.times.tolist() == [978300019, 978300055, 978300060]


def test_case_d1_zeros_of_identifiers_stay(tmp_path: Path) -> None:
    """Case D1, in atomic files."""
    inter = "user_id:token\titem_id:token\ttimestamp:float\nu1\t007\t1\nu1\t7\t2\nu1\t007\t3\n"
    item = "item_id:token\ttitle:token_seq\n007\tBond\n7\tSeven\n"
    tables = read_recbole(write(tmp_path, inter=inter, item=item))
    assert tables.items is not None
    assert dict(tables.items.rows()) == {"007": "Bond", "7": "Seven"}
    assert tables.interactions["item_id"].to_list() == ["007", "7", "007"]


def test_times_in_scientific_notation(tmp_path: Path) -> None:
    tables = read_recbole(write(tmp_path, inter=INTER.replace("978300060", "9.7830006E8")))
    assert tables.interactions["timestamp"].to_list() == [978300060, 978300055]


def test_crlf_byte_order_mark_latin_1_and_other_dirt(tmp_path: Path) -> None:
    item = "\ufeff" + ITEM.replace("\n", "\r\n").replace("Matrix", "R&eacute;sum&eacute;").replace(
        "Comedy", "NaN"
    )
    write(tmp_path, inter="\ufeff" + INTER.replace("\n", "\r\n") + "\r\n")
    (tmp_path / "x.item").write_bytes(item.encode() + b"4\tMis\xe9rables\t\t\t\t\r\n1\tagain\t\t\t\t\r\n")
    tables = read_recbole(tmp_path)
    assert tables.items is not None
    assert tables.items["title"].to_list() == ['The "Burbs', "Résumé, The (1999)", '5" Disk', "Misérables"]
    assert tables.counts == {"duplicate_items": 1}


def test_natural_titles(tmp_path: Path) -> None:
    items = read_recbole(write(tmp_path, inter=INTER, item=ITEM), natural_titles=True).items
    assert items is not None
    assert items["title"][1] == "The Matrix (1999)"


def test_text_fields_of_choice(tmp_path: Path) -> None:
    write(tmp_path, inter=INTER, item=ITEM)
    assert read_recbole(tmp_path, text_fields=["year", "title"]).text_fields == ["year", "title"]
    with pytest.raises(DataError, match=r"'titel' \(did you mean 'title'\?\)"):
        read_recbole(tmp_path, text_fields=["titel"])


def test_other_column_names(tmp_path: Path) -> None:
    inter = INTER.replace("item_id", "business_id").replace("timestamp", "date")
    item = ITEM.replace("item_id", "business_id")
    names = {"item_id": "business_id", "timestamp": "date"}
    tables = read_recbole(write(tmp_path, inter=inter, item=item), columns=names)
    assert tables.interactions.row(0) == (1, 2, 978300060, 3.0)


def test_sequences_are_unrolled(tmp_path: Path) -> None:
    """Parts of a sequential data set: each user's longest row holds the history, the target last."""
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for part, rows in (
        ("train", "u\ta b\tc\nv\tb\ta\n"),
        ("valid", "u\ta b c\td\n"),
        ("test", "u\ta b c d\ta\n"),
    ):
        (tmp_path / f"x.{part}.inter").write_text(head + rows)
    tables = read_recbole(tmp_path)
    assert tables.time_unit == "index"
    rows = tables.interactions.sort("user_id", "timestamp").rows()
    assert rows == [*(("u", i, t) for t, i in enumerate("abcda")), ("v", "b", 0), ("v", "a", 1)]


def test_one_of_several_data_sets(tmp_path: Path) -> None:
    write(tmp_path, inter=INTER)
    (tmp_path / "y.inter").write_text(INTER)
    with pytest.raises(DataError, match="several data sets: x, y"):
        read_recbole(tmp_path)
    assert read_recbole(tmp_path, name="y").interactions.height == 2
    with pytest.raises(DataError, match="'z'; valid: x, y"):
        read_recbole(tmp_path, name="z")


def test_the_published_ml_100k(shared_data: Path) -> None:
    tables = read_recbole(shared_data / "ml-100k")
    assert tables.interactions.height == 100_000
    assert tables.text_fields == ["movie_title", "class"]
    assert tables.items is not None
    assert tables.items.height == 1682
