"""ByteDance's Books: two files of one name, told apart by folders and columns."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from hllm.data.dataset import Dataset
from hllm.data.sources.bytedance import SOURCES, read_bytedance_books
from hllm.errors import DataError

INTERACTIONS = (
    "item_id,user_id,timestamp\n"
    "0001048791,A1V6B6TNIC10QE,1001894400\n"
    "0001048791,A3OTP0QZ7W3BB9,1036281600\n"
    "B00005N7P0,A3OTP0QZ7W3BB9,1036281600\n"
)
ITEMS = (
    "item_id,description,title\n"
    '0001048791,"First line\nsecond, with ""quotes"" &amp; more",The Crucible\n'
    "B00005N7P0,nan,It's a 5\" Disk\n"
    "0001048791,again,A duplicate\n"
    "B999999999,,\n"
)
LAYOUTS = [
    ("dataset/amazon_books.csv", "information/amazon_books.csv"),
    ("amazon_books.csv", "amazon_books.csv.1"),  # after two wget lines
    ("amazon_books.csv.1", "amazon_books.csv"),
    ("Interactions/amazon_books.csv", "ItemInformation/amazon_books.csv"),
    ("amazon_books_interactions.csv", "item_information.csv"),  # torch-rechub's names
    ("amazon_books_interactions.csv", "amazon_books.csv"),
    ("dataset/amazon_books.csv.gz", "information/amazon_books.csv.gz"),
]


def write(folder: Path, interactions: str, items: str, names: tuple[str, str] = LAYOUTS[0]) -> Path:
    for name, text in zip(names, (interactions, items), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


@pytest.mark.parametrize("names", LAYOUTS, ids=" ".join)
def test_wherever_the_files_lie(tmp_path: Path, names: tuple[str, str]) -> None:
    tables = read_bytedance_books(write(tmp_path, INTERACTIONS, ITEMS, names))
    assert tables.interactions.rows() == [
        ("A1V6B6TNIC10QE", "0001048791", 1001894400),
        ("A3OTP0QZ7W3BB9", "0001048791", 1036281600),
        ("A3OTP0QZ7W3BB9", "B00005N7P0", 1036281600),
    ]
    assert tables.items is not None
    assert tables.items.rows() == [
        ("0001048791", "The Crucible", 'First line\nsecond, with "quotes" & more'),
        ("B00005N7P0", "It's a 5\" Disk", "nan"),
    ]
    assert tables.text_fields == ["title", "description"]
    assert tables.counts == {"duplicate_items": 1}
    assert Dataset.from_source_tables(tables, name="bytedance-books").n_candidates == 2


def test_columns_go_by_name_and_rows_by_file_order(tmp_path: Path) -> None:
    text = "timestamp,user_id,item_id\n5,u2,b\n5,u1,a\n"
    tables = read_bytedance_books(write(tmp_path, text, "title,item_id\nB,b\nA,a\n"))
    assert tables.interactions.rows() == [("u2", "b", 5), ("u1", "a", 5)]
    assert tables.items is not None
    assert tables.items.columns == ["item_id", "title", "description"]


def test_all_items_with_those_nobody_touched(tmp_path: Path) -> None:
    tables = read_bytedance_books(write(tmp_path, INTERACTIONS, ITEMS), catalogue="all")
    assert tables.items is not None
    assert tables.items.row(2) == ("B999999999", None, None)


def test_crlf_a_byte_order_mark_and_windows_1252(tmp_path: Path) -> None:
    items = b"\xef\xbb\xbf" + ITEMS.replace("Crucible", "Café").encode("cp1252").replace(b"\n", b"\r\n")
    write(tmp_path, "\ufeff" + INTERACTIONS.replace("\n", "\r\n"), "")
    (tmp_path / "information/amazon_books.csv").write_bytes(items)
    tables = read_bytedance_books(tmp_path)
    assert tables.items is not None
    assert tables.items["title"][0] == "The Café"
    assert tables.items["description"][0] == 'First line\nsecond, with "quotes" & more'


def test_lists_printed_into_a_text(tmp_path: Path) -> None:
    first = "0001048791,\"['A', 'title']\",\"['It''s.', \"\"Two.\"\"]\""
    items = f"item_id,title,description\n{first}\nB00005N7P0,x,[]\n"
    tables = read_bytedance_books(write(tmp_path, INTERACTIONS, items))
    assert tables.items is not None
    assert tables.items.row(0) == ("0001048791", "A, title", "Its. Two.")


def test_a_missing_half_is_named(tmp_path: Path) -> None:
    write(tmp_path, INTERACTIONS, ITEMS)
    (tmp_path / "information/amazon_books.csv").unlink()
    with pytest.raises(
        DataError, match=r"no amazon_books.csv with item texts .* found: dataset/amazon_books.csv with"
    ):
        read_bytedance_books(tmp_path)
    (tmp_path / "dataset/amazon_books.csv").unlink()
    with pytest.raises(
        DataError, match=r"with interactions .* nothing of that name.*hllm data fetch bytedance-books"
    ):
        read_bytedance_books(tmp_path)


def test_the_specification_has_both_addresses() -> None:
    (source,) = SOURCES
    assert [url.split("/")[-2] for url in source.urls] == ["Interactions", "ItemInformation"]
    assert source.licence and source.citation and source.size
