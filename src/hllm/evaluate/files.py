"""`hllm evaluate --recs FILE --truth FILE`: anyone's recommendations under our metrics.

Both files (CSV and other delimited text, Parquet, JSON lines) have user_id and item_id. The
recommendations are ordered by `rank` where there is such a column, else by falling `score`, else
by their place in the file. Identifiers are compared as text, so 7 in Parquet is "7" in CSV (and 7.0 in a
column of numbers), while "007" is another item.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.arguments import path, whole
from hllm.artifacts import disk_errors
from hllm.data.reading.tablefiles import is_untyped, read_table_file
from hllm.data.tables.columns import canonical_ids, without_missing
from hllm.data.tables.frames import to_polars
from hllm.data.tables.identifiers import check_shared, whole_ids
from hllm.data.tables.schema import ITEM_ID, USER_ID
from hllm.errors import DataError, nearest
from hllm.evaluate.lists import ListMetrics, evaluate_pairs
from hllm.evaluate.metrics import DEFAULT_KS, check_ks

if TYPE_CHECKING:
    import polars as pl

RANK, SCORE = "rank", "score"
FEW = 10  # items, of which it may be that none is hit


def evaluate_files(
    recs: Path | str, truth: Path | str, ks: Sequence[int] = DEFAULT_KS, bootstrap: int = 1000
) -> ListMetrics:
    """Score the lists in `recs` against the held-out items in `truth`.

    A row of `truth` without an item says that the user has none; such users are left out and
    counted. Raises DataError for files or columns that cannot be used, and for users or items of
    which the two files share none.
    """
    paths = {str(given): path(name, given) for name, given in (("recs", recs), ("truth", truth))}
    names = (str(recs), str(truth))
    with disk_errors("read the tables"):
        frames = [read_table_file(path) for path in paths.values()]
    untyped = [name for name, file in paths.items() if is_untyped(file)]
    return evaluate_frames(frames[0], frames[1], ks, bootstrap, names, untyped)


def evaluate_frames(
    recs: Any,
    truth: Any,
    ks: Sequence[int] = DEFAULT_KS,
    bootstrap: int = 1000,
    names: tuple[str, str] = ("recommendations", "truth"),
    untyped: Collection[str] = (),
) -> ListMetrics:
    """The same for pandas, polars or Arrow tables; `names` are for messages.

    Those of the `names` that are `untyped` have identifiers as text, numbers or not.
    """
    import polars as pl

    ks, bootstrap = check_ks(ks), whole("bootstrap", bootstrap, 0)
    recs, truth = to_polars(recs), to_polars(truth)
    for frame, name in zip((recs, truth), names, strict=True):
        for column in (USER_ID, ITEM_ID):
            if column not in frame.columns:
                hint = nearest(column, frame.columns)
                raise DataError(f"{name} has no column {column!r}{hint}; found: {', '.join(frame.columns)}")
    has_item = without_missing(truth[ITEM_ID]).is_not_null()
    users = _ids(recs[USER_ID], truth[USER_ID], names, untyped)
    items = _ids(recs[ITEM_ID], truth[ITEM_ID].filter(has_item), names, untyped)
    everyone = pl.concat(users)
    users[1] = users[1].filter(has_item)
    if recs.height and len(users[1]):
        for what, (ours, theirs) in (("users", users), ("items", items)):
            _check_shared(what, ours, theirs, names)
    ranks = _ranks(recs.with_columns(users[0]), names[0])
    codes = [
        pl.concat(column).cast(pl.Categorical).to_physical().cast(pl.Int64).to_numpy()
        for column in (users, items)
    ]
    n = recs.height
    return evaluate_pairs(
        codes[0][:n],
        codes[1][:n],
        ranks.to_numpy(),
        codes[0][n:],
        codes[1][n:],
        ks=ks,
        bootstrap=bootstrap,
        users_named=everyone.n_unique(),
    )


def _ids(
    recs: pl.Series, truth: pl.Series, names: tuple[str, str], untyped: Collection[str]
) -> list[pl.Series]:
    """The identifiers of both tables as text: 7, "7" and 7.0 of a column of numbers are one."""
    import polars as pl

    columns = [canonical_ids(c, name) for c, name in zip((recs, truth), names, strict=True) if len(c)]
    if len(columns) == 2:
        columns = whole_ids(columns, names, untyped)
        return [c.cast(pl.String) for c in columns]
    return [c.cast(pl.String) for c in (recs, truth)]


def _check_shared(what: str, recs: pl.Series, truth: pl.Series, names: tuple[str, str]) -> None:
    """DataError where the files share no user or item, a warning where it is less than half.

    Less than half of the smaller side: whoever recommends a few popular items shares all of these.
    A handful of items of the same form may simply be missed: that is a warning, too.
    """
    sides = [(recs.unique(maintain_order=True), names[0]), (truth.unique(maintain_order=True), names[1])]
    sides.sort(key=lambda side: len(side[0]))
    (fewer, small), (more, large) = sides
    alike = what == "items" and len(fewer) < FEW and _is_number(recs) == _is_number(truth)
    check_shared(fewer, more, f"{what} of {small}", large, may_miss=alike)


def _is_number(values: pl.Series) -> bool:
    return bool(values.head(1000).str.contains(r"^-?\d+$").all())


def _ranks(recs: pl.DataFrame, name: str) -> pl.Series:
    """Ranks Int64 from the `rank` column, from scores, or from the order of the rows."""
    import polars as pl

    wanted = RANK if RANK in recs.columns else SCORE
    if wanted not in recs.columns:
        return recs.select(pl.int_range(1, pl.len() + 1).over(USER_ID).alias(RANK)).to_series()
    kind = recs.schema[wanted]
    numbers = (
        recs[wanted] if kind.is_numeric() or kind == pl.String else pl.Series(wanted, [None] * recs.height)
    )
    numbers = numbers.cast(pl.Float64, strict=False)
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
