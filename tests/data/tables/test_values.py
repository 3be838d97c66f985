"""Texts with the dirt of catalogues."""

from __future__ import annotations

from typing import Any

import pytest

from hllm.data.tables.values import clean_text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("War &amp; Peace", "War & Peace"),
        ("&quot;Hi&quot; &#233;", '"Hi" é'),
        ("AT&T", "AT&T"),
        ("  padded \n", "padded"),
        ("two\nlines, kept", "two\nlines, kept"),
        ("", None),
        ("  ", None),
        (None, None),
        (float("nan"), None),
        ("nan", "nan"),  # words of programs for nothing are words all the same
        ("NA", "NA"),
        ("None", "None"),
        ("null", "null"),
        ("Tea \ud83d", "Tea \ufffd"),
        (["First.", "Second."], "First. Second."),
        (["One", "One", "", None, float("nan")], "One"),
        ([["Books", "Novels"], ["Books", "War"]], "Books, Novels, War"),
        (["a" * 41, "b"], "a" * 41 + " b"),  # paragraphs
        ("['Comedy' 'Drama']", "Comedy, Drama"),  # as numpy prints an array
        ([], None),
        ("['Heavy-duty staples.', \"It's steel.\"]", "Heavy-duty staples. It's steel."),
        ("['not a list", "['not a list"),
        ("['a'] and more", "['a'] and more"),
        ({"large": "http://picture"}, None),
        (1984, "1984"),
    ],
)
def test_clean_text(value: Any, expected: str | None) -> None:
    assert clean_text(value) == expected


def test_the_joiner_is_used_at_every_depth() -> None:
    assert clean_text([["Books", "Novels"], ["War"]], ", ") == "Books, Novels, War"
    assert clean_text("['Books', 'War']", ", ") == "Books, War"


def test_a_clean_text_comes_out_as_it_went_in() -> None:
    for text in ("The <b>bold</b> title", "100% & more", "back\\slash", "[brackets]", "Ünïcödé 本"):
        assert clean_text(text) == text
