"""Identifiers of tables that belong together: one type for all of them, and something in common."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hllm.data.tables.columns import first_true
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

WHOLE = r"^(0|-?[1-9]\d*)(\.0+)?$"


def is_integer_text(values: pl.Series) -> bool:
    """Whether every string of `values` is exactly what printing an int64 gives ("007" is not)."""
    return bool(_integer_text(values).all())


def _integer_text(values: pl.Series) -> pl.Series:
    import polars as pl

    numbers = values.cast(pl.Int64, strict=False)
    return (numbers.cast(pl.String) == values).fill_null(False)


def agreeing_ids(
    columns: Sequence[pl.Series], names: Sequence[str], untyped: Collection[str] = (), label: str = ""
) -> list[pl.Series]:
    """The columns of one identifier, Int64 or String, with the type that the first of them gets.

    Those of the tables `names` that are in `untyped` come from files of text: they are Int64 where all
    of them are whole numbers throughout ("12" and "12.0", not "012") and no other column is text (cases
    D1, D12). `label` is the user's name of the column. DataError where the types cannot agree.
    """
    import polars as pl

    columns = whole_ids(columns, names, untyped)
    ours, out = columns[0], [columns[0]]
    for theirs, name in zip(columns[1:], names[1:], strict=True):
        if ours.dtype != theirs.dtype:
            text = theirs if theirs.dtype == pl.String else ours
            if not is_integer_text(text):
                bad = text[first_true(~_integer_text(text))]
                raise DataError(
                    f"{label or ours.name} is {_type_name(ours)} in the {names[0]} but {_type_name(theirs)} in "
                    f"the {name} table, and {bad!r} is not written as an integer; convert one"
                )
        out.append(theirs.cast(ours.dtype))
    return out


def whole_ids(
    columns: Sequence[pl.Series], names: Sequence[str], untyped: Collection[str]
) -> list[pl.Series]:
    """The columns, those of `untyped` tables as Int64 where they are numbers throughout and none is text."""
    import polars as pl

    loose = [c.dtype == pl.String and name in untyped for c, name in zip(columns, names, strict=True)]
    if any(c.dtype == pl.String and not free for c, free in zip(columns, loose, strict=True)):
        return list(columns)
    numbers = [_whole_numbers(c) if free else c for c, free in zip(columns, loose, strict=True)]
    return [c for c in numbers if c is not None] if all(c is not None for c in numbers) else list(columns)


def _whole_numbers(values: pl.Series) -> pl.Series | None:
    """Text that is whole numbers throughout as Int64; None for any other."""
    import polars as pl

    if not values.str.contains(WHOLE).all():
        return None
    numbers = values.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    return None if numbers.null_count() else numbers


def check_shared(
    ours: pl.Series, theirs: pl.Series, our_name: str, their_name: str, may_miss: bool = False
) -> list[str]:
    """Notes, also given as a warning, where less than half of `ours` is among `theirs`.

    Both have one type. DataError, with examples of both, where nothing is, unless it `may_miss`.
    """
    ours = ours.unique(maintain_order=True)
    shared = int(ours.is_in(theirs.implode()).sum())
    examples = f"({sample(ours.filter(~ours.is_in(theirs.implode())))} against {sample(theirs)})"
    if not shared and len(ours) and not may_miss:
        raise DataError(
            f"no {our_name} occurs in {their_name} {examples}; both must use the same identifiers"
        )
    if 2 * shared >= len(ours):
        return []
    text = f"only {shared:,} of {len(ours):,} {our_name} occur in {their_name} {examples}"
    warnings.warn(text, stacklevel=2)
    return [text]


def _type_name(values: pl.Series) -> str:
    return "int64" if values.dtype.is_integer() else "string"


def sample(values: pl.Series, n: int = 3) -> str:
    """A few distinct values, for a message."""
    shown: Iterable[Any] = values.head(50).unique(maintain_order=True).head(n).to_list()
    return ", ".join(repr(v) for v in shown)
