"""Text as catalogues publish it, made into what an item LLM should read.

What is repaired: HTML entities, NaN in its spellings, lists where a string is expected (also
lists printed into a string), white space around the text. Words are never changed, so that a
text without dirt comes out as it went in.
"""

from __future__ import annotations

import ast
import html
from collections.abc import Iterable, Iterator
from typing import Any

MISSING = frozenset(("nan", "NaN", "None", "null"))
"""What programs print for a missing value. "Nan" and "NULL" stay: they are titles of real books."""


def clean_text(value: Any, joiner: str = " ") -> str | None:
    """A text of one field, or None where there is none.

    Lists (nested ones too) are flattened, repeated parts dropped, and joined by `joiner`.
    """
    if value is None or value != value:  # NaN is unequal to itself
        return None
    if isinstance(value, str):
        return _clean(value, joiner)
    if isinstance(value, list | tuple):
        parts = (clean_text(part, joiner) for part in _flatten(value))
        return joiner.join(dict.fromkeys(part for part in parts if part)) or None
    if isinstance(value, dict):
        return None  # pictures, variants: nothing to read
    return str(value)


def _clean(text: str, joiner: str) -> str | None:
    if text[:2] in ("['", '["') and text[-1] == "]":
        parts = _printed_list(text)
        if parts is not None:
            return clean_text(parts, joiner)
    if "&" in text:
        text = html.unescape(text)
    text = text.strip()
    return None if text in MISSING else text or None


def _printed_list(text: str) -> list[Any] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _flatten(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        else:
            yield value
