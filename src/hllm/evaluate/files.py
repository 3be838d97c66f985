"""`hllm evaluate --recs FILE --truth FILE`: anyone's recommendations under our metrics.

Both files (CSV and other delimited text, Parquet, JSON lines) have user_id and item_id. The
recommendations are ordered by `rank` where there is such a column, else by falling `score`, else
by their place in the file. Identifiers are compared as text, so 7 in Parquet is "7" in CSV, while
"007" is another item.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hllm.data.reading.delimited import read_delimited
from hllm.data.reading.textfiles import read_utf8
from hllm.data.tables.columns import canonical_ids
from hllm.data.tables.schema import ITEM_ID, USER_ID
from hllm.errors import DataError, nearest
from hllm.evaluate.lists import ListMetrics, evaluate_pairs
from hllm.evaluate.metrics import DEFAULT_KS

if TYPE_CHECKING:
    import polars as pl

RANK, SCORE = "rank", "score"


def evaluate_files(
    recs: Path | str, truth: Path | str, ks: Sequence[int] = DEFAULT_KS, bootstrap: int = 1000
) -> ListMetrics:
    """Score the lists in `recs` against the held-out items in `truth`.

    A row of `truth` without an item says that the user has none; such users are left out and
    counted. Raises DataError for files or columns that cannot be used.
    """
    return evaluate_frames(
        read_table_file(Path(recs)), read_table_file(Path(truth)), ks, bootstrap, (str(recs), str(truth))
    )


def evaluate_frames(
    recs: pl.DataFrame,
    truth: pl.DataFrame,
    ks: Sequence[int] = DEFAULT_KS,
    bootstrap: int = 1000,
    names: tuple[str, str] = ("recommendations", "truth"),
) -> ListMetrics:
    """The same for polars frames; `names` are for messages."""
    import polars as pl

    for frame, name in zip((recs, truth), names, strict=True):
        for column in (USER_ID, ITEM_ID):
            if column not in frame.columns:
                hint = nearest(column, frame.columns)
                raise DataError(f"{name} has no column {column!r}{hint}; found: {', '.join(frame.columns)}")
    everyone = pl.concat([_ids(recs, USER_ID, names[0]), _ids(truth, USER_ID, names[1])])
    truth = truth.filter(pl.col(ITEM_ID).is_not_null())
    recs = recs.with_columns(_ranks(recs, names[0]))
    users = [_ids(recs, USER_ID, names[0]), _ids(truth, USER_ID, names[1])]
    items = [_ids(recs, ITEM_ID, names[0]), _ids(truth, ITEM_ID, names[1])]
    codes = [
        pl.concat(column).cast(pl.Categorical).to_physical().cast(pl.Int64).to_numpy()
        for column in (users, items)
    ]
    n = recs.height
    return evaluate_pairs(
        codes[0][:n],
        codes[1][:n],
        recs[RANK].to_numpy(),
        codes[0][n:],
        codes[1][n:],
        ks=ks,
        bootstrap=bootstrap,
        users_named=everyone.n_unique(),
    )


def read_table_file(path: Path) -> pl.DataFrame:
    """A table from Parquet, JSON lines, CSV or TSV, by suffix; DataError where it cannot be read."""
    import polars as pl

    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith((".parquet", ".pq")) and path.is_file():
            return pl.read_parquet(path)
        data = read_utf8(path)
        if name.endswith((".jsonl", ".ndjson")):
            return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as err:
        raise DataError(f"cannot read {path}: {str(err).splitlines()[0]}") from err
    return read_delimited(path, data, "\t" if name.endswith(".tsv") else None)


def _ids(frame: pl.DataFrame, column: str, name: str) -> pl.Series:
    import polars as pl

    return canonical_ids(frame[column], name).cast(pl.String)


def _ranks(recs: pl.DataFrame, name: str) -> pl.Series:
    """Ranks Int64 from the `rank` column, from scores, or from the order of the rows."""
    import polars as pl

    wanted = RANK if RANK in recs.columns else SCORE
    if wanted not in recs.columns:
        return recs.select(pl.int_range(1, pl.len() + 1).over(USER_ID).alias(RANK)).to_series()
    numbers = recs[wanted].cast(pl.Float64, strict=False)
    whole = wanted != RANK or (numbers == numbers.floor()).all()
    if numbers.null_count() or not numbers.is_finite().all() or not whole:
        raise DataError(
            f"{name} column {wanted!r} has values that are no {'whole ' * (wanted == RANK)}numbers"
        )
    if wanted == RANK:
        return numbers.cast(pl.Int64)
    scored = recs.select(USER_ID, numbers)
    return scored.select(
        pl.col(SCORE).rank("ordinal", descending=True).over(USER_ID).cast(pl.Int64).alias(RANK)
    ).to_series()
