"""Recommendations as tables, with the identifiers the user knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.artifacts import atomic, check_writable, write_table
from hllm.data.tables.schema import ITEM_ID, USER_ID
from hllm.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.dataset import Dataset
    from hllm.evaluate.ranking import TopK

FEW = 10_000  # rows, up to which Python's lists are faster than a query of polars
WRITERS = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
FORMULA = r"^[=+\-@\t\r]"  # what a spreadsheet takes for a formula


def to_frame(top: TopK, names: Sequence[Any], data: Dataset) -> pl.DataFrame:
    """`user_id, item_id, score (float32), rank (int64)`; `names` are the user ids of the queries."""
    import polars as pl

    if len({type(name) for name in names}) > 1:  # somebody unknown has an id of another type
        names = [str(name) for name in names]
    dtype = pl.Series(names).dtype if len(names) else data.users[USER_ID].dtype
    if len(top) < FEW:
        ids, items = data.item_ids, data.items[ITEM_ID]
        users = pl.Series(USER_ID, [names[row] for row in top.rows.tolist()], dtype=dtype)
        found = pl.Series(ITEM_ID, [ids[token - 1] for token in top.tokens.tolist()], dtype=items.dtype)
    else:
        users = pl.Series(USER_ID, list(names), dtype=dtype).gather(top.rows)
        found = data.items[ITEM_ID].gather(top.tokens - 1)
    return pl.DataFrame({USER_ID: users, ITEM_ID: found, "score": top.scores, "rank": top.ranks})


def check_output(path: Path) -> None:
    """Raise ConfigError unless the suffix of `path` is one that `write_frame` knows, and can be written."""
    if path.suffix not in WRITERS:
        raise ConfigError(f"--out {path}: unknown suffix {path.suffix!r}; valid: {', '.join(WRITERS)}")
    check_writable(path)


def formulas(frame: pl.DataFrame) -> int:
    """Number of texts that a spreadsheet would run as formulas."""
    import polars as pl

    texts = frame.select(pl.col(pl.String).str.contains(FORMULA).sum())
    return sum(texts.row(0)) if texts.width else 0


def write_frame(path: Path, frame: pl.DataFrame, spreadsheet_safe: bool = False) -> None:
    """Write recommendations by suffix: Parquet, CSV, TSV, JSON (a list of rows) or JSON lines.

    With `spreadsheet_safe`, text in CSV and TSV that begins like a formula gets an apostrophe before
    it, as spreadsheets have it for text; the ids are then no longer the user's to the letter.
    """
    import polars as pl

    check_output(path)
    if spreadsheet_safe and path.suffix in (".csv", ".tsv"):
        frame = frame.with_columns(pl.col(pl.String).str.replace(rf"({FORMULA})", "'$1"))
    if path.suffix == ".parquet":
        write_table(path, frame)
        return
    with atomic(path) as temporary:
        if path.suffix == ".jsonl":
            frame.write_ndjson(temporary)
        elif path.suffix == ".json":
            frame.write_json(temporary)
        else:
            frame.write_csv(temporary, separator="\t" if path.suffix == ".tsv" else ",")
