"""Items that come after training: checked, and appended to the catalogue of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hllm.data.tables.schema import ITEM_ID, canonical
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.dataset import Dataset


def check_new_items(data: Dataset, items: Any) -> pl.DataFrame:
    """`items` (pandas, polars or Arrow) as a frame with the columns of the run's own items table.

    Raises DataError for known or repeated ids, and for ids or columns of another type than the catalogue's.
    """
    import polars as pl

    frame = canonical(items, "items")
    own = data.items
    if frame.schema[ITEM_ID] != own.schema[ITEM_ID]:
        raise DataError(
            f"new item ids are {frame.schema[ITEM_ID]}, the catalogue's are {own.schema[ITEM_ID]}; convert {ITEM_ID}"
        )
    known = frame.filter(pl.col(ITEM_ID).is_in(own[ITEM_ID].implode()))
    if len(known):
        raise DataError(
            f"{len(known)} items are in the catalogue already, the first is {known[ITEM_ID][0]!r}"
        )
    if frame[ITEM_ID].is_duplicated().any():
        twice = frame.filter(pl.col(ITEM_ID).is_duplicated())[ITEM_ID][0]
        raise DataError(f"item {twice!r} occurs more than once among the new items")
    missing = [pl.lit(None, dtype=own.schema[c]).alias(c) for c in own.columns if c not in frame.columns]
    try:
        return frame.with_columns(missing).select([pl.col(c).cast(own.schema[c]) for c in own.columns])
    except pl.exceptions.PolarsError as err:
        raise DataError(
            f"a column of the new items has values of another type than in the catalogue: {str(err).splitlines()[0]}"
        ) from err


def added_dataset(data: Dataset, frame: pl.DataFrame) -> Dataset:
    """The run's dataset with the rows of `frame` appended to its catalogue; histories are untouched."""
    import polars as pl

    added = int(data.meta.get("n_added", 0)) + len(frame)
    meta = {**data.meta, "n_catalogue": data.n_catalogue + len(frame), "n_added": added}
    frames = {"items": pl.concat([data.items, frame]), "users": data.users}
    return replace(data, path=None, meta=meta, frames=frames)
