"""Field values as people write them: without markup, stray white space, or numbers and dates as machines print them."""

from __future__ import annotations

import datetime as dt
import html
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hllm.text.template import field_text

if TYPE_CHECKING:
    import polars as pl

_DROPPED = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,2000}>")
_INLINE = re.compile(
    r"</?(?:a|abbr|b|bdi|em|font|i|mark|s|small|span|strong|sub|sup|u)\b[^<>]{0,2000}>", re.IGNORECASE
)
_SPACE = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]+")  # zero-width characters too
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_LIST = re.compile(r"\[\s*['\"].*['\"]\s*\]", re.DOTALL)  # of texts, printed by Python or JSON
_MIDNIGHT = re.compile(r"(\d{4}-\d{2}-\d{2})[T ]00:00(?::00(?:\.0+)?)?(?:Z|\+00:00)?")
_NUMBER = re.compile(r"([$€£¥]?)\s?(-?\d{1,15}\.\d+)")


def clean(items: pl.DataFrame, fields: Iterable[str]) -> pl.DataFrame:
    """`items` whose `fields` are cleaned texts (see `clean_value`); fields that are no column are passed over."""
    import polars as pl

    names = [name for name in fields if name in items.columns]
    return items.with_columns(
        pl.Series(name, [clean_value(value) for value in items[name].to_list()], dtype=pl.String)
        for name in names
    )


def clean_value(value: Any) -> str:
    """The text of a field's value, "" where there is none.

    HTML loses its tags and entities, white space runs become one space, lists (also printed ones, "['a', 'b']")
    are joined by commas without repeats, numbers keep at most two decimals ($12.990000 is $12.99), and a date
    without a time of day loses the midnight behind it.
    """
    if isinstance(value, list | tuple):
        return ", ".join(dict.fromkeys(filter(None, map(clean_value, value))))
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        value = value.date()
    text = field_text(value)
    if _LIST.fullmatch(text.strip()) and (parts := _printed_list(text)) is not None:
        return clean_value(parts)
    if "<" in text:
        text = _TAG.sub(" ", _INLINE.sub("", _DROPPED.sub(" ", text)))
    text = _SPACE.sub(" ", _CONTROL.sub("", html.unescape(text))).strip()
    if found := _MIDNIGHT.fullmatch(text):
        return found[1]
    if found := _NUMBER.fullmatch(text):
        return _short(found[1], found[2])
    return text


def _short(currency: str, number: str) -> str:
    """`number` with at most two decimals: of a price both or none, else without zeros at its end."""
    shown = f"{float(number):.2f}".removesuffix(".00")
    return currency + (shown if currency or "." not in shown else shown.rstrip("0"))


def _printed_list(text: str) -> list[Any] | None:
    """The texts of a list that was printed into a text; None where it is none after all."""
    import ast
    import json

    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(part, str) for part in found):
            return found
    return None
