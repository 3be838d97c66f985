"""Items that come after training: checked, and appended to the catalogue of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hllm.data.tables.columns import count
from hllm.data.tables.schema import ITEM_ID, new_items
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.dataset import Dataset


def check_new_items(data: Dataset, items: Any, counts: dict[str, int] | None = None) -> pl.DataFrame:
    """`items` (pandas, polars or Arrow) as a frame with the columns of the run's own items table.

    They are read as the catalogue was: of an item given twice the first with a text counts. What was
    repaired is added up in `counts`. Raises DataError for known ids, and for ids or columns of another
    type than the catalogue's.
    """
    import polars as pl

    own = data.items
    frame, found = new_items(items, own, data.meta["text_fields"])
    for name, n in found.items():
        count(counts, name, n)
    known = frame.filter(pl.col(ITEM_ID).is_in(own[ITEM_ID].implode()))
    if len(known):
        raise DataError(
            f"{len(known)} items are in the catalogue already, the first is {known[ITEM_ID][0]!r}"
        )
    missing = [pl.lit(None, dtype=own.schema[c]).alias(c) for c in own.columns if c not in frame.columns]
    try:
        # A fraction among whole numbers stays one: numbers are not cut to integers.
        return frame.with_columns(missing).select(
            pl.col(c)
            if frame.schema.get(c, kind).is_numeric() and kind.is_numeric()
            else pl.col(c).cast(kind)
            for c, kind in own.schema.items()
        )
    except pl.exceptions.PolarsError as err:
        raise DataError(
            f"a column of the new items has values of another type than in the catalogue: {str(err).splitlines()[0]}"
        ) from err


def added_dataset(data: Dataset, frame: pl.DataFrame, counts: Mapping[str, int] | None = None) -> Dataset:
    """The run's dataset with the rows of `frame` appended to its catalogue; histories are untouched.

    `counts` of what was repaired are added to the dataset's own.
    """
    import polars as pl

    added = int(data.meta.get("n_added", 0)) + len(frame)
    sums = dict(data.meta.get("counts", {}))
    for name, n in (counts or {}).items():
        count(sums, name, n)
    meta = {**data.meta, "counts": sums, "n_catalogue": data.n_catalogue + len(frame), "n_added": added}
    frames = {"items": pl.concat([data.items, frame], how="vertical_relaxed"), "users": data.users}
    return replace(data, path=None, meta=meta, frames=frames)
