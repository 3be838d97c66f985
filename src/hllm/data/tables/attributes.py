"""Columns of items and users beside the identifier: text, numbers, true or false.

What a column is, is told by its values, not by the door it came through: a CSV file has only
text, JSON no dates, pandas no integers beside a missing value. So a text column that is numeric
throughout is numbers, whole floats are integers, dates and times are the text that a CSV file
has of them, and lists are joined. A value that is none of these is refused by name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hllm.data.tables.columns import FLOAT_LIMITS, count, without_missing
from hllm.data.tables.values import WHITE, clean_text, printed_list
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

INTEGERS = r"^-?(0|[1-9]\d{0,17})$"
WHOLE = r"^-?(0|[1-9]\d{0,17})(\.0+)?$"
NUMBERS = r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$"
FLAGS = r"^(true|false|True|False|TRUE|FALSE)$"
CLOCK = r"\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?"
MOMENTS = rf"^(\d{{4}}-\d\d-\d\d[T ])?{CLOCK}$"


def attribute(
    values: pl.Series,
    table: str,
    as_text: bool,
    counts: dict[str, int],
    notes: list[str],
    cleaned: bool = False,
) -> pl.Series | None:
    """The column with its canonical type, as String if it is to be a text field (`as_text`).

    None for records within records, which hold nothing to read. Texts that are `cleaned` stay as
    they are. Raises DataError naming the column for bytes that are no text and for
    objects that no table can hold.
    """
    import polars as pl

    values = without_missing(values)
    kind = values.dtype
    if isinstance(kind, pl.Struct) and not as_text:
        notes.append(f"{table} column {values.name!r} holds records, nothing to read: left out")
        return None
    if isinstance(kind, pl.List | pl.Array):
        values = _joined(values.to_list(), values.name)
    elif kind == pl.String:
        values = values if cleaned else _texts(values, counts, notes)
    elif kind == pl.Null or values.null_count() == len(values):
        values = pl.Series(values.name, [None] * len(values), dtype=pl.String)
    elif kind == pl.Binary:
        values = _texts(_decoded(values, table), counts, notes)
    elif kind.is_temporal():
        values = _moments(values)
    elif kind.is_decimal():
        values = values.cast(pl.String)
    elif not (kind.is_numeric() or kind == pl.Boolean):
        what = "records" if isinstance(kind, pl.Struct) else f"values of type {kind}"
        raise DataError(
            f"{table} column {values.name!r} holds {what}, not text or numbers; take out a field of it, convert "
            "it to text, or leave the column out"
        )
    if values.dtype == pl.String:
        return values if cleaned else _plain_text(values) if as_text else _typed(values)
    values = _whole(values)
    return values.cast(pl.String) if as_text else values


def _texts(values: pl.Series, counts: dict[str, int], notes: list[str]) -> pl.Series:
    """Texts without dirt; only those that may have any are looked at one by one."""
    import polars as pl

    bare = values.str.strip_chars(WHITE)
    rows = bare.str.contains(r"^$|^\[|&|\x{fffd}").arg_true()
    if not len(rows):
        return bare
    before = bare.gather(rows).to_list()
    listed = sum(text[:1] == "[" for text in before)
    if listed and listed == len(bare) - values.null_count() - before.count(""):
        lists = [None if not text else printed_list(text) for text in bare]
        if all(parts is not None for parts, text in zip(lists, bare, strict=True) if text):
            return _with_note(_joined(lists, values.name), listed, notes)
    after = [clean_text(text) for text in before]
    count(counts, "texts_with_replaced_characters", sum("\ufffd" in text for text in after if text))
    joined = sum(
        old[:1] == "[" and new is not None and new[:1] != "[" for old, new in zip(before, after, strict=True)
    )
    return _with_note(bare.scatter(rows, pl.Series(after, dtype=pl.String)), joined, notes)


def _with_note(values: pl.Series, joined: int, notes: list[str]) -> pl.Series:
    if joined:
        notes.append(f"{values.name}: {joined:,} values written as lists were joined to plain text")
    return values


def _joined(lists: list[list[object] | None], name: str) -> pl.Series:
    import polars as pl

    return pl.Series(name, [clean_text(parts) for parts in lists], dtype=pl.String)


def _decoded(values: pl.Series, table: str) -> pl.Series:
    """Bytes as the UTF-8 text that they are; DataError where they are none."""
    import polars as pl

    texts: list[str | None] = []
    for row, value in enumerate(values):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError as err:
            raise DataError(
                f"{table} column {values.name!r} holds bytes that are no UTF-8 text, the first in row {row}: "
                f"{value[:20]!r}; decode it, or leave the column out"
            ) from err
    return pl.Series(values.name, texts, dtype=pl.String)


def _moments(values: pl.Series) -> pl.Series:
    """Dates, times, datetimes and durations as text."""
    import polars as pl

    if isinstance(values.dtype, pl.Duration):
        return pl.Series(values.name, [None if v is None else str(v) for v in values], dtype=pl.String)
    if isinstance(values.dtype, pl.Datetime):
        zone = "%:z" if values.dtype.time_zone else ""
        return _plain_moments(values.dt.to_string(f"%Y-%m-%d %H:%M:%S%.f{zone}"))
    return _plain_moments(values.cast(pl.String))


def _plain_moments(texts: pl.Series) -> pl.Series:
    """One spelling of moments: 1995-11-22 18:00:00.5, without the time where it is midnight throughout."""
    texts = (
        texts.str.replace(r"^(\d{4}-\d\d-\d\d)T", "$1 ")
        .str.replace(r"(\.\d*?)0+($|Z|[+-])", "$1$2")
        .str.replace(r"\.($|Z|[+-])", "$1")
        .str.replace(r"Z$", "+00:00")
    )
    midnight = texts.str.ends_with(" 00:00:00").drop_nulls()
    return texts.str.head(10) if len(midnight) and midnight.all() else texts


def _throughout(values: pl.Series, pattern: str) -> bool:
    """Whether every value that is there matches; the first decides in most cases."""
    at = values.is_not_null().arg_max()
    first = None if at is None else values[at]
    return first is not None and bool(re.search(pattern, first)) and bool(values.str.contains(pattern).all())


def _plain_text(values: pl.Series) -> pl.Series:
    """A text field: as it is written, but for whole floats, flags and moments, which have one spelling."""
    if _throughout(values, WHOLE):
        return values.str.replace(r"\.0+$", "")
    if _throughout(values, MOMENTS):
        return _plain_moments(values)
    return values.str.to_lowercase() if _throughout(values, FLAGS) else values


def _typed(values: pl.Series) -> pl.Series:
    """Numbers and flags where every value is one ("02460" is none); else the text."""
    import polars as pl

    if _throughout(values, INTEGERS):
        return values.cast(pl.Int64)
    if _throughout(values, NUMBERS):
        return _whole(values.cast(pl.Float64))
    if _throughout(values, FLAGS):
        return values.str.to_lowercase() == "true"
    return _plain_text(values)


def _whole(values: pl.Series) -> pl.Series:
    """Floats of which every one is a whole number as Int64: what they were before a value was missing."""
    import polars as pl

    if not values.dtype.is_float():
        fits = values.dtype.is_integer() and values.dtype != pl.Int64
        return values.cast(pl.Int64, strict=False) if fits and values.dtype != pl.UInt64 else values
    limit = FLOAT_LIMITS[str(values.dtype)]
    whole = values.is_finite() & (values == values.floor()) & (values.abs() <= limit)
    return values.cast(pl.Int64) if whole.drop_nulls().all() and whole.any() else values
