"""Identifiers to numbers: dense codes for users and items, tokens for items.

Token 0 is padding; then the candidates (items with an event in the filtered data) sorted by
identifier, then catalogue-only items sorted by identifier. Strings sort by code point, which
is the same in polars (bytes of UTF-8), in Python and on every locale.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.tables.values import clean_id
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl


def encode(values: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """Distinct `values`, sorted, and the int32 code (N,) of every row: `values[i] == distinct[codes[i]]`."""
    import polars as pl

    distinct = values.unique().sort()
    codes = pl.DataFrame({"id": distinct}).with_row_index("code")
    found = pl.DataFrame({"id": values}).join(codes, on="id", how="left", maintain_order="left")
    return distinct, found["code"].to_numpy().astype(np.int32)


def compress(codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Old codes still in use (sorted, int64) and `codes` renumbered to 0..len(used) - 1 (int32)."""
    used = np.bincount(codes, minlength=n) > 0
    renumber = (np.cumsum(used) - 1).astype(np.int32)
    return np.flatnonzero(used), renumber[codes]


def item_vocabulary(candidates: pl.Series, catalogue: pl.Series | None) -> pl.Series:
    """Item identifiers in token order: element i is token i + 1. `candidates` are sorted already."""
    import polars as pl

    if catalogue is None:
        return candidates
    others = catalogue.filter(~catalogue.is_in(candidates.implode())).unique().sort()
    return pl.concat([candidates, others])


def lookup(index: dict[Any, int], value: Any, kind: str, hint: str = "") -> int:
    """Number of the identifier `value` in `index`; "50" finds 50 and 50 finds "50", "050" neither.

    White space around it is ignored, and 50.0 is 50. Raises DataError naming the identifier and a few
    that exist, followed by `hint`.
    """
    wanted = clean_id(value)
    if isinstance(wanted, bool) or not isinstance(wanted, Hashable):
        raise DataError(f"{kind} {value!r} is a {type(value).__name__}, not an identifier: a number or text")
    if wanted in index:
        return index[wanted]
    other = _other_type(wanted)
    if other in index:
        return index[other]
    sample = ", ".join(repr(key) for key in islice(index, 3))
    raise DataError(f"unknown {kind} {value!r}; {len(index):,} are known, such as {sample}{hint}")


def _other_type(value: Any) -> Any:
    """The integer that a string writes exactly, or the string of an integer."""
    if isinstance(value, str):
        text = value.removesuffix(".0")
        digits = text.removeprefix("-")
        is_integer = digits.isascii() and digits.isdigit() and len(digits) < 20 and str(int(text)) == text
        return int(text) if is_integer else None
    return str(value) if isinstance(value, int) else None
