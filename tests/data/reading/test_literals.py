"""Records a line: JSON or Python literals, whole and by the fields."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.reading.literals import LiteralScanner, parse_record

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
# What 2014 catalogues hold: texts full of quotes and brackets, and lists of codes beside them.
VALUES = st.one_of(
    TEXTS,
    st.sampled_from(
        ["it's", 'a "quoted" one', "'title': 'no'", "], 'title': '", "back\\slash", "\\n", "{[}'\""]
    ),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
    st.lists(st.sampled_from(["0001048791", "B00005N7P0", "a]b", "it's", "', '"]), max_size=4),
    st.lists(st.lists(TEXTS, max_size=2), max_size=2),
    st.dictionaries(st.sampled_from(["also_bought", "Books"]), st.lists(TEXTS, max_size=3), max_size=2),
)
KEYS = st.sampled_from(["asin", "title", "description", "imUrl", "related", "salesRank", "titles"])
RECORDS = st.dictionaries(KEYS, VALUES, max_size=7)
WANTED = ("asin", "title", "description")


@given(RECORDS)
def test_the_scanner_agrees_with_the_literal(record: dict[str, Any]) -> None:
    line = repr(record).encode()
    assert LiteralScanner(WANTED)(line) == {k: record[k] for k in WANTED if k in record}


@given(RECORDS)
def test_what_the_scanner_understands_at_once_is_right(record: dict[str, Any]) -> None:
    found = LiteralScanner(WANTED)._scan(repr(record).encode())
    assert found is None or found == {k: record[k] for k in WANTED if k in record}


def test_a_published_line_takes_the_fast_way() -> None:
    line = (
        b"{'asin': '0001048791', 'salesRank': {'Books': 6334800}, 'imUrl': 'http://ecx.com/51.jpg', "
        b"'related': {'also_bought': ['0307394530', '0451526341'], 'buy_after_viewing': ['B0']}, "
        b"'price': 18.99, 'categories': [['Books']], "
        b"'title': \"The Crucible: it's, \\\"new\\\"\\n\", 'description': 'A &amp; B'}"
    )
    expected = ast.literal_eval(line.decode())
    assert LiteralScanner(WANTED)._scan(line) == {k: expected[k] for k in WANTED}


def test_a_record_with_a_key_of_that_name_inside_another() -> None:
    record = {"asin": "1", "related": {"title": "no", "asin": "2"}, "description": "'asin': '3'"}
    assert LiteralScanner(WANTED)(repr(record).encode()) == {"asin": "1", "description": "'asin': '3'"}


def test_latin_1_texts_are_read() -> None:
    assert LiteralScanner(["title"])(b"{'title': 'Mis\xe9rables'}") == {"title": "Misérables"}
    assert parse_record(b'{"title": "Mis\xe9rables"}') == {"title": "Misérables"}


def test_nan_is_a_missing_value_in_either_form() -> None:
    value = parse_record(b'{"price": NaN}')["price"]
    assert value != value
    assert parse_record(b"{'price': nan, 'title': 'x: nan'}") == {"price": None, "title": "x: nan"}


@pytest.mark.parametrize(
    "line",
    [
        b"{'asin': __import__('os').getcwd()}",
        b"{'asin': open('x')}",
        b"{'asin': (lambda: 1)()}",
        b"{'asin': 1 if True else 2}",
        b"{'asin': 'x', 'title': 'cut",
        b"['asin']",
        b"not a record",
        b"{'asin': 'x'} trailing",
        b"\x00\x01",
        b"[" * 100_000,
    ],
)
def test_nothing_is_evaluated_and_nothing_else_is_accepted(line: bytes) -> None:
    for parse in (parse_record, LiteralScanner(["asin"])):
        with pytest.raises(ValueError, match=r"literal|record|JSON"):
            parse(line)


@given(RECORDS)
def test_json_records(record: dict[str, Any]) -> None:
    assert parse_record(json.dumps(record).encode()) == record


def test_a_line_that_does_not_match_is_given_up_at_once() -> None:
    """No catastrophic backtracking: 200,000 quotes and brackets in milliseconds."""
    line = b"{'title': " + b"['a', " * 50_000 + b"\"'" * 50_000
    assert LiteralScanner(["title"])._scan(line) is None
