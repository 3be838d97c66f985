"""Fields without markup, stray white space, or numbers and dates as machines print them."""

import datetime as dt

import polars as pl
import pytest

from hllm.text.clean import clean, clean_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<p>Strong &amp; <b>light</b></p><ul><li>One</li><li>two</li></ul>", "Strong & light One two"),
        ("a<br/>b<script>var x = '<b>';</script> c <!-- not this -->", "a b c"),
        ("1 < 2 and 3 > 2, <3", "1 < 2 and 3 > 2, <3"),
        (" Up\n\t and\u00a0away\u200b\x07 ", "Up and away"),
        (["Drama", " War ", None, "Drama"], "Drama, War"),
        ("['Tools', \"Men's\"]", "Tools, Men's"),
        ('["Tools", "Home"]', "Tools, Home"),
        ("['Tools', ...]", "['Tools', ...]"),
        ("[1, 2]", "[1, 2]"),
        (12.990000001, "12.99"),
        (4.5, "4.5"),
        ("$12.990000", "$12.99"),
        ("€ 7.5", "€7.50"),
        ("$30.0", "$30"),
        (-0.25, "-0.25"),
        ("2.10.3", "2.10.3"),
        ("2015-03-01T00:00:00.000Z", "2015-03-01"),
        ("2015-03-01 10:30", "2015-03-01 10:30"),
        (dt.datetime(1995, 11, 22), "1995-11-22"),
        (dt.date(1995, 11, 22), "1995-11-22"),
        (None, ""),
        (float("nan"), ""),
        (7, "7"),
        ("<" * 5000, "<" * 5000),
    ],
)  # fmt: skip
def test_values(value, text) -> None:
    assert clean_value(value) == text
    assert clean_value(text) == text


def test_only_the_fields_that_are_asked_for() -> None:
    items = pl.DataFrame({"title": [" Up ", None], "raw": ["<b>", "x"], "tags": [["a", "a"], []]})
    cleaned = clean(items, ["title", "tags", "absent"])
    assert cleaned.to_dict(as_series=False) == {"title": ["Up", ""], "raw": ["<b>", "x"], "tags": ["a", ""]}
