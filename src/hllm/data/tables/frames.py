"""Tables of any library as polars frames, and columns of Python values as polars columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hllm.data.reading.textfiles import check_width
from hllm.data.tables.values import is_missing, sound
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl


def to_polars(frame: Any) -> pl.DataFrame:
    """Any pandas, polars or Arrow table as a polars frame; categories become strings.

    Raises DataError for anything else and for columns that hold values of several types.
    """
    import polars as pl

    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    check_width("the table", getattr(frame, "column_names", getattr(frame, "columns", ())))
    if not isinstance(frame, pl.DataFrame):
        if type(frame).__module__.split(".")[0] == "pandas" and hasattr(frame, "columns"):
            frame = _from_pandas(frame)
        elif hasattr(frame, "__arrow_c_stream__"):
            try:
                frame = pl.DataFrame(frame)
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError, ValueError) as err:
                raise DataError(f"the Arrow table cannot be read: {str(err).splitlines()[0]}") from err
        else:
            raise DataError(f"a table must be a pandas, polars or Arrow table, not {type(frame).__name__}")
    texts = [c for c, t in frame.schema.items() if isinstance(t, pl.Categorical | pl.Enum)]
    return frame.with_columns(pl.col(texts).cast(pl.String)) if texts else frame


def _from_pandas(frame: Any) -> pl.DataFrame:
    """pandas to polars, with pyarrow or (pandas works without it) column by column."""
    import polars as pl

    if frame.columns.nlevels > 1:
        raise DataError(
            f"the table's columns have {frame.columns.nlevels} levels, as {frame.columns[0]!r}; give each one "
            "name, for example frame.columns = ['_'.join(c) for c in frame.columns]"
        )
    frame = frame.rename(columns=lambda name: sound(str(name)))
    data: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        if getattr(column, "ndim", 1) != 1:
            raise DataError(f"column {name!r} occurs more than once; rename or drop one")
        try:
            data[name] = pl.from_pandas(column)
        except Exception:  # without pyarrow, or one of its many errors: the values one by one
            data[name] = column_of(name, column.tolist())
        if data[name].dtype == pl.Object:
            data[name] = column_of(name, column.tolist())
    return pl.DataFrame(data)


def column_of(name: str, values: Iterable[Any]) -> pl.Series:
    """A column of Python values. Text beside numbers is DataError, naming the column and the types."""
    import polars as pl

    plain = [_plain(value) for value in values]
    try:
        column = pl.Series(name, plain, strict=True)
    except (
        Exception,
        pl.exceptions.PanicException,
    ):  # polars has several classes of its own, and OverflowError
        column = None
    if column is None or column.dtype == pl.Object:
        present = [value for value in plain if value is not None]
        kinds = sorted({type(value).__name__ for value in present[:100_000]})
        example = next((v for v in present if type(v) is not type(present[0])), present[0])
        what = f"values of several types ({', '.join(kinds)})" if len(kinds) > 1 else f"{kinds[0]} values"
        raise DataError(
            f"column {name!r} holds {what}, such as {' '.join(repr(example).split())}; "
            "convert it first, for example with .astype(str)"
        )
    return column


def frame_of(records: list[dict[str, Any]]) -> pl.DataFrame:
    """Records as a frame, a column for every key; text beside other values makes a column text."""
    import polars as pl

    names = list(dict.fromkeys(name for record in records for name in record))
    data = {}
    for name in names:
        values = [record.get(name) for record in records]
        kinds = {type(value) for value in values if not is_missing(value)}
        if str in kinds and len(kinds) > 1:  # as polars' own reader has it
            values = [v if isinstance(v, str) or is_missing(v) else json.dumps(v) for v in values]
        data[sound(name)] = column_of(sound(name), values)
    return pl.DataFrame(data)


def _plain(value: Any) -> Any:
    """The value as polars takes it: nothing missing but None, no half surrogates, no numpy types."""
    if isinstance(value, str):
        return sound(str(value))
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {sound(str(key)): _plain(part) for key, part in value.items()}
    return None if is_missing(value) else value
