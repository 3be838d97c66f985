"""The times of anonymous histories, in the unit of a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.tables.columns import canonical_times
from hllm.data.tables.schema import UNITS_PER_SECOND
from hllm.errors import DataError

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset


def times_of(data: Dataset, times: Any, number: int) -> np.ndarray:
    """Times int64 (n,) of one history, in the dataset's unit, from numbers in that unit, datetimes or ISO dates.

    Raises DataError for anything else, and for times that fall.
    """
    if isinstance(times, str | bytes | int | float):
        raise DataError(f"times must be a list of lists of times, for example times=[[{times!r}]]")
    try:
        values = np.asarray(times)
    except ValueError:
        values = np.zeros((0, 0))
    if values.ndim != 1:
        raise DataError(f"times {number} must be a list of times, one for each event")
    if values.dtype.kind == "M":
        times = values.astype("datetime64[us]").tolist()
    if values.dtype.kind not in "iu" and len(values):
        values = _in_unit(list(times), data.meta["time_unit"], number)
    values = values.astype(np.int64)
    falls = np.flatnonzero(np.diff(values) < 0)
    if len(falls):
        at = int(falls[0]) + 1
        raise DataError(
            f"times {number} falls at event {at}: {times[at]} after {times[at - 1]}; oldest first"
        )
    return values


def _in_unit(times: list[Any], unit: str, number: int) -> np.ndarray:
    import polars as pl

    try:
        column = pl.Series(f"times {number}", times)
    except (TypeError, OverflowError, pl.exceptions.PolarsError) as err:
        raise DataError(
            f"times {number} are not all numbers, or all dates: {str(err).splitlines()[0]}"
        ) from err
    moments, own = canonical_times(column, None)
    values = moments.to_numpy()
    if own is None or own == unit:
        return values
    if unit == "index":
        raise DataError("the dataset's times are positions without a clock; give positions instead of dates")
    ours, theirs = UNITS_PER_SECOND[unit], UNITS_PER_SECOND[own]
    return values * (ours // theirs) if ours >= theirs else values // (theirs // ours)
