"""Delimited text: what a quote means, which lines are rows, and what is refused."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.reading import delimited
from hllm.data.reading.delimited import read_delimited, rfc_quotes, sniff, split_line
from hllm.errors import ConfigError, DataError

FILE = Path("x.csv")


def rows(text: str, **options: object) -> list[tuple[str | None, ...]]:
    return read_delimited(FILE, text.encode(), **options).rows()  # type: ignore[arg-type]


def test_case_d4_lone_quotes_are_text() -> None:
    """Case D4."""
    text = 'item_id:token\ttitle:token_seq\n1\tThe "Burbs\n2\tUp\n3\t5" Disk\n'
    assert rows(text) == [("1", 'The "Burbs'), ("2", "Up"), ("3", '5" Disk')]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # RFC 4180: line breaks, separators and doubled quotes inside a quoted field
        ('a,b\n1,"x\n\ny, z"\n2,"say ""hi"""\n', [("1", "x\n\ny, z"), ("2", 'say "hi"')]),
        ('"a","b"\n"1",""\n', [("1", None)]),
        # a stray quote somewhere must not spoil the quoted fields elsewhere
        ('a,b\n1,"x, y"\n2,The "Burbs\n', [("1", "x, y"), ("2", 'The "Burbs')]),
        ('a,b\n1,"x, y\nz"\n2,The "Burbs\n', [("1", "x, y\nz"), ("2", 'The "Burbs')]),
        ('a\tb\n1\t"Up\n2\tThe "Burbs"\n', [("1", '"Up'), ("2", 'The "Burbs"')]),
        ('a,b\n"unclosed,1\n2,3\n', [('"unclosed', "1"), ("2", "3")]),
        # blank lines are no rows
        ("a,b\n\n1,2\n\n\n3,4\n\n", [("1", "2"), ("3", "4")]),
        ("a\n1\n\n2\n", [("1",), ("2",)]),
        ("a,b\n1,\n", [("1", None)]),
        ("a,b\n", []),
    ],
)
def test_quotes_and_blank_lines(text: str, expected: list[tuple[str | None, ...]]) -> None:
    assert rows(text) == expected


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0\x1f", exclude_categories=("Cs",)))


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6))
def test_what_python_writes_is_read_back(table: list[tuple[str, str, str]]) -> None:
    """Any text, written by the csv module, comes back; empty fields are null."""
    table = [("k" + a, b, c) for a, b, c in table]  # no row is a blank line
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("a", "b", "c"), *table])
    expected = [tuple(cell or None for cell in row) for row in table]
    assert rows(text.getvalue(), delimiter=",") == expected


PLAIN = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs"), exclude_characters=",")).map(
    lambda text: text.removeprefix('"').removeprefix('"')
)


@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=6))
def test_unquoted_text_with_quotes_inside_is_read_as_it_is(table: list[tuple[str, str]]) -> None:
    """A file whose writer never quotes: every quote that does not begin a field is text."""
    table = [("k" + a, "v" + b) for a, b in table]
    text = "a,b\n" + "".join(f"{a},{b}\n" for a, b in table)
    assert rows(text, delimiter=",") == table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "x.csv line 3: 1 field where 2 are expected: '3'$"),
        ("a,b\n1,2\n3", "line 3: 1 field .*cut short"),
        ("a,b,c\n1,2\n1,2,3,4\n", "line 2: 2 fields where 3"),
        ("a,b\n\n1,2,3\n", "line 3: 3 fields where 2"),
        ('a,b\n1,"x\ny"\n2\n', "line 4: 1 field where 2"),
        ('a,b\n1,The "Burbs\n2\n', "line 3: 1 field where 2"),
        ("a,a\n1,2\n", "column 'a' more than once"),
    ],
)
def test_uneven_lines_are_named(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(text)


def test_delimiters() -> None:
    assert [sniff(line) for line in ("a;b,c;d", "a\tb", "a|b", "a", '"x;y;z",b')] == [
        ";",
        "\t",
        "|",
        ",",
        ",",
    ]
    assert rows("a::b\n1::2:3\n", delimiter="::") == [("1", "2:3")]
    assert rows("a\tb\n1\t2\n", delimiter="tab") == [("1", "2")]
    with pytest.raises(ConfigError, match="delimiter ''"):
        rows("a,b\n", delimiter="")


def test_columns_of_a_file_without_header() -> None:
    frame = read_delimited(FILE, b"1,2\n3,4\n", columns=["x", "y"])
    assert (frame.columns, frame.rows()) == (["x", "y"], [("1", "2"), ("3", "4")])


def test_the_fast_parser_is_used_where_quotes_are_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of quoted rows must not go line by line."""
    monkeypatch.setattr(delimited, "lenient_rows", None)
    assert rows('a,b\n"1","x, y"\n') == [("1", "x, y")]
    assert rfc_quotes(b'a,5" Disk\n', b",") is None


def test_split_line() -> None:
    assert split_line('1,"a, b",c', ",") == (["1", "a, b", "c"], False)
    assert split_line('1,"a, b', ",") == (["1", '"a', " b"], True)
    assert split_line('"",', ",") == (["", ""], False)


def test_case_e22_the_number_of_columns_is_limited(tmp_path):
    path = tmp_path / "a.csv"
    names = ",".join(f"c{i}" for i in range(100_000))
    for second in ("x" * 9, ",".join("x" * 100_000)):
        with pytest.raises(DataError, match=r"has 100,000 columns, and the limit is 10,000; keep those"):
            read_delimited(path, f"{names}\n{second}\n".encode())


@pytest.mark.parametrize("quoted", [True, False])
@pytest.mark.parametrize("odd", ["", '\n3,5" disk'])
def test_case_e22_long_fields_are_read(tmp_path, quoted, odd):
    """Beyond the 131,072 characters that Python's csv takes."""
    text = "a, b" * 50_000 if quoted else "a" * 200_000
    data = f'item_id,title\n1,"{text}"\n2,b{odd}\n' if quoted else f"item_id,title\n1,{text}\n2,b{odd}\n"
    assert read_delimited(tmp_path / "a.csv", data.encode())["title"][0] == text
    with pytest.raises(DataError, match=r"line \d: 3 fields where 2 are expected") as caught:
        read_delimited(tmp_path / "a.csv", (data + f"9,{'y' * 200_000},z\n").encode())
    assert len(str(caught.value)) < 300
