"""One value made canonical: the rules that every way into hllm shares, file, table or request.

Missing is an empty field, null, NaN and NaT; the words "NA", "nan", "None" and "null" are text.
Text has its HTML entities resolved, its lists (also printed ones) joined, and no white space
around it; words are never changed, so that a text without dirt comes out as it went in.
Identifiers are numbers or text without white space around it.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from numbers import Number
from typing import Any

from hllm.errors import DataError

WHITE = "".join(c for c in map(chr, range(0x3001)) if c.isspace())
"""What counts as white space around a value, for Python and polars alike."""
PARAGRAPH = 40
"""Parts of a list longer than this (or ending like a sentence) are prose; others are labels."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_STRING = r"'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\""
# As numpy prints an array of strings: ['a' 'b'], which Python would read as the one string 'ab'.
_PRINTED_ARRAY = re.compile(rf"\[(?:{_STRING})(?:\s+(?:{_STRING}))+\]")


def is_missing(value: Any) -> bool:
    """Whether a value is None, a NaN of any kind, pandas' NaT or its NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, Number) and bool(value != value)  # NaN is unequal to itself


def sound(text: str) -> str:
    """The text with U+FFFD for half a surrogate pair, which no encoding can store."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def clean_text(value: Any, joiner: str | None = None) -> str | None:
    """A text of one field, or None where there is none.

    Lists (nested ones too) are flattened, repeated parts dropped, and joined by `joiner`; by
    default ", " for labels ("Comedy, Drama") and a space for paragraphs.
    """
    if isinstance(value, str):
        return _clean(value, joiner)
    if isinstance(value, list | tuple):
        parts = dict.fromkeys(text for part in _flatten(value) if (text := clean_text(part, joiner)))
        return (joiner or _joiner(parts)).join(parts) or None
    if isinstance(value, dict) or is_missing(value):
        return None  # pictures, variants: nothing to read
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _clean(text: str, joiner: str | None) -> str | None:
    text = sound(text).strip(WHITE)
    if text[:1] == "[":
        parts = printed_list(text) if text[:2] in ("['", '["', "[]") else None
        if parts is not None:
            return clean_text(parts, joiner)
    return html.unescape(text).strip(WHITE) or None if "&" in text else text or None


def _joiner(parts: Iterable[str]) -> str:
    return " " if any(len(part) > PARAGRAPH or part[-1] in ".!?:;" for part in parts) else ", "


def printed_list(text: str) -> list[Any] | None:
    """The list that a program has printed into a text; None where the text is no such thing."""
    if text[:1] != "[" or text[-1:] != "]":
        return None
    if _PRINTED_ARRAY.fullmatch(text):
        text = "[" + ",".join(re.findall(_STRING, text)) + "]"
    for parse in (ast.literal_eval, json.loads):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, list) else None
    return None


def _flatten(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        else:
            yield value


def clean_id(value: Any) -> Any:
    """An identifier as tables hold it: text without white space around it, whole floats as integers."""
    if hasattr(value, "item") and hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0:
        value = value.item()  # numpy's numbers and strings
    if isinstance(value, str):
        return sound(value).strip(WHITE)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def id_list(values: Any, name: str, what: str = "item ids") -> list[Any]:
    """The elements of a list, tuple, set, array or column of ids that was passed as `name`.

    DataError for anything else: the characters of a text are no ids.
    """
    if isinstance(values, str | bytes | Number):
        raise DataError(f"{name}={values!r} must be a list of {what}, for example {name}=[{values!r}]")
    if isinstance(values, Mapping) or hasattr(values, "columns") or not isinstance(values, Iterable):
        raise DataError(f"{name} must be a list of {what}, not {type(values).__name__}")
    return list(values)
