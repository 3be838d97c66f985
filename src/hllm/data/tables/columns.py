"""Values of one column made canonical: identifiers, times, ratings and attributes.

Each function takes a polars column and returns it with its canonical type, or raises a
DataError naming the column, the offending value and its row (rows are counted from 0).
Nothing is rounded: a float that no longer tells two integers apart is refused (case D3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from hllm.data.tables.values import WHITE
from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

# Whole floats beyond these magnitudes may already stand for a neighbouring integer.
FLOAT_LIMITS = {"Float16": 2**11, "Float32": 2**24, "Float64": 2**53}
SUBSECONDS = "times are kept as exact integers: multiply by 1000 and pass time_unit='ms' (--time-unit ms)"
CANONICAL = ("user_id", "item_id", "timestamp", "rating")


def first_true(mask: pl.Series) -> int:
    """Row of the first true value."""
    return int(mask.fill_null(False).arg_max() or 0)


def _named(values: pl.Series) -> str:
    """How a message speaks of a column's value: by the user's name of it, whatever that is."""
    return values.name if values.name in CANONICAL else f"column {values.name!r}: value"


def _no_nulls(values: pl.Series, table: str) -> None:
    if gone := values.null_count():
        raise DataError(
            f"{table} column {values.name!r} has {gone:,} missing value{'s' * (gone > 1)}, "
            f"the first in row {first_true(values.is_null())}; drop or fill these rows"
        )


def _whole(values: pl.Series, advice: str) -> pl.Series:
    """Floats (or decimals) that stand for integers, as Int64; DataError names the first that does not."""
    import polars as pl

    limit = FLOAT_LIMITS.get(str(values.dtype))
    if values.dtype.is_decimal():
        values, limit = values.cast(pl.Float64), 2**53
    inexact = (values != values.floor()) | ~values.is_finite()
    if inexact.any():
        row = first_true(inexact)
        raise DataError(f"{_named(values)} {values[row]!r} in row {row} is not a whole number; {advice}")
    if limit is not None and (values.abs() > limit).any():
        row = first_true(values.abs() > limit)
        raise DataError(
            f"{_named(values)} {values[row]:.0f} in row {row} is a {values.dtype} above {limit:,}, "
            "where that type no longer tells two integers apart; read the column as int64"
        )
    return values.cast(pl.Int64)


def canonical_ids(values: pl.Series, table: str, counts: dict[str, int] | None = None) -> pl.Series:
    """Identifiers as Int64 or String; white space around them goes, and is counted in `counts`."""
    import polars as pl

    values = without_missing(values)
    kind = values.dtype
    if kind == pl.String:
        bare = values.str.strip_chars(WHITE)
        count(counts, "ids_stripped_of_white_space", (bare != values).sum())
        count(counts, "ids_with_replaced_characters", bare.str.contains("\ufffd").sum())
        values = bare.set(bare == "", None)
    _no_nulls(values, table)
    if kind == pl.String:
        return values
    if kind.is_integer():
        return _int64(values)
    if kind.is_float() or kind.is_decimal():
        return _whole(values, "identifiers are integers or strings")
    raise DataError(f"{table} column {values.name!r} has type {kind}; identifiers are integers or strings")


def without_missing(values: pl.Series) -> pl.Series:
    """The column with null for what is missing: NaN and the empty text."""
    import polars as pl

    if values.dtype.is_float():
        return values.fill_nan(None)
    return values.set(values == "", None) if values.dtype == pl.String and (values == "").any() else values


def count(counts: dict[str, int] | None, name: str, n: Any) -> None:
    """Add `n` to what is counted under `name`; what never occurs is not listed."""
    if counts is not None and n:
        counts[name] = counts.get(name, 0) + int(n)


def _int64(values: pl.Series) -> pl.Series:
    import polars as pl

    numbers = values.cast(pl.Int64, strict=False)
    if numbers.null_count():
        row = first_true(numbers.is_null())
        raise DataError(f"{_named(values)} {values[row]} in row {row} does not fit in int64; use strings")
    return numbers


def canonical_times(values: pl.Series, unit: str | None) -> tuple[pl.Series, str | None]:
    """Times as exact Int64, and their unit where the column's type tells it."""
    import polars as pl

    values = without_missing(values)
    kind = values.dtype
    _no_nulls(values, "interactions")
    if kind == pl.String:
        return _text_times(values, unit)
    if isinstance(kind, pl.Datetime):
        return values.cast(pl.Int64), _own_unit(values, kind.time_unit, unit)
    if kind == pl.Date:  # in microseconds, as a date that is written as text
        return values.cast(pl.Datetime("us")).cast(pl.Int64), _own_unit(values, "us", unit)
    if kind.is_integer():
        return _int64(values), unit
    if kind.is_float() or kind.is_decimal():
        return _whole(values, SUBSECONDS), unit
    raise DataError(f"column {values.name!r} has type {kind}; times are integers or datetimes")


def _own_unit(values: pl.Series, own: str, asked: str | None) -> str:
    if asked not in (None, own):
        raise ConfigError(
            f"time_unit={asked} contradicts the column {values.name!r}, which holds dates in {own}; "
            "leave time_unit out"
        )
    return own


def _text_times(values: pl.Series, unit: str | None) -> tuple[pl.Series, str | None]:
    """Integers, whole floats ("978300060.0") or ISO dates written as text."""
    import polars as pl

    text = values.str.strip_chars(WHITE)
    numbers = text.cast(pl.Int64, strict=False)
    bad = numbers.is_null()
    if not bad.any():
        return numbers, unit
    floats = text.cast(pl.Float64, strict=False)
    if not floats.null_count():
        return _whole(floats, SUBSECONDS), unit
    moments = _iso_moments(text)
    if not moments.null_count():
        return moments.cast(pl.Int64), _own_unit(values, moments.dtype.time_unit, unit)  # type: ignore[attr-defined]
    # Name the value that departs from the others: the odd date among numbers, or the reverse.
    culprit = moments.is_null() if bad[0] and moments[0] is not None else bad & floats.is_null()
    row = first_true(culprit)
    raise DataError(
        f"{_named(values)} {values[row]!r} in row {row} is not a time; "
        "times are integers (seconds, ms, us or ns) or dates, year first, such as 2024-05-31 18:00:00"
    )


def _iso_moments(text: pl.Series) -> pl.Series:
    """UTC dates and times as datetimes; null where the text is neither.

    The year comes first: in 03/04/2024 nobody can tell the day from the month.
    """
    import polars as pl

    unit: Literal["ns", "us"] = "ns" if text.str.contains(r"\.\d{7}").any() else "us"
    text = text.set(~text.str.contains(r"^\d{4}[-/.]\d"), None)
    try:
        return text.str.replace(r"(Z|[+-]00:?00)$", "").str.to_datetime(strict=False, time_unit=unit)
    except pl.exceptions.ComputeError:  # not one value looks like a date
        return pl.Series(text.name, [None] * len(text), dtype=pl.Datetime("us"))


def canonical_ratings(values: pl.Series) -> pl.Series:
    """Ratings as Float64, null where there is none."""
    import polars as pl

    kind = values.dtype
    if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
        raise DataError(f"column {values.name!r} has type {kind}; ratings are numbers")
    text = values.str.strip_chars(WHITE) if kind == pl.String else values
    numbers = without_missing(without_missing(text).cast(pl.Float64, strict=False))
    bad = (numbers.is_null() | numbers.is_infinite()) & without_missing(text).is_not_null()
    if bad.any():
        row = first_true(bad)
        raise DataError(f"{_named(values)} {values[row]!r} in row {row} is not a number")
    return numbers
