"""Anyone's tables: CSV, TSV and other delimited text, Parquet, JSON lines; `.gz` of each.

The files are read by `reading/tablefiles.py`; here they are found, and their columns named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.reading.delimited import check_delimiter
from hllm.data.reading.files import first_file, optional_file
from hllm.data.reading.tablefiles import is_untyped, read_table_file
from hllm.data.reading.textfiles import check_encoding
from hllm.data.sources.movielens import with_natural_titles
from hllm.data.sources.spec import Source
from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.tables.schema import Tables

# What `prepare tabular --from DIR` looks for.
DEFAULT_NAMES = tuple(f"{{}}{ending}" for ending in (".parquet", ".csv", ".tsv", ".jsonl"))


def read_tabular(
    folder: Path | str | None = None,
    *,
    interactions: Path | str | None = None,
    items: Path | str | None = None,
    users: Path | str | None = None,
    user_col: str | None = None,
    item_col: str | None = None,
    time_col: str | None = None,
    rating_col: str | None = None,
    text_cols: str | Sequence[str] | None = None,
    time_unit: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    header: bool = True,
    items_header: bool = True,
    items_id_col: str | None = None,
    users_id_col: str | None = None,
    natural_titles: bool = False,
) -> Tables:
    """Read interactions and, where given, items and users.

    Files not named are looked for in `folder` as interactions.*, items.* and users.*. The
    columns are user_id, item_id, timestamp and rating unless told otherwise; items and users may
    keep the usual names, or have names of their own (`items_id_col`, `users_id_col`).
    `header=False` calls the columns of the interactions "1", "2", ..., `items_header=False` those
    of the items.
    `time_col="none"`: rows are in order already, and the row number is the time. `text_cols` (a
    list, or names with commas between) are the text fields in prompt order, by default every
    text column of the items. `time_unit` is guessed from the magnitude of the times unless
    given, and the guess is noted. `delimiter` is guessed from the first line.

    Raises DataError for files, columns or values that cannot be used.
    """
    from hllm.data.tables import schema

    check_options(time_unit=time_unit, delimiter=delimiter, encoding=encoding, time_col=time_col)
    headers = {"interactions": header, "items": items_header}
    files = {"interactions": interactions, "items": items, "users": users}
    paths = {name: _path(folder, name, file) for name, file in files.items()}
    main = paths["interactions"]
    if main is None:
        raise DataError("no interactions: pass --interactions FILE, or --from DIR with interactions.csv")
    frames = {
        name: read_table_file(path, delimiter, encoding, headers.get(name, True))
        for name, path in paths.items()
        if path is not None
    }
    events = frames["interactions"]
    columns = {schema.USER_ID: user_col, schema.ITEM_ID: item_col, schema.RATING: rating_col}
    if _is_none(time_col):
        events, time_unit = _row_number_times(events), "index"
    else:
        columns[schema.TIMESTAMP] = time_col
    try:
        tables = schema.to_tables(
            events,
            frames.get("items"),
            frames.get("users"),
            columns={name: column for name, column in columns.items() if column is not None},
            text_fields=_names(text_cols),
            time_unit=time_unit,
            text_ids=[name for name, path in paths.items() if path is not None and is_untyped(path)],
            item_key=items_id_col,
            user_key=users_id_col,
        )
    except DataError as err:
        raise DataError(_with_file(str(err), paths, headers, frames)) from err
    if (
        time_unit is None
        and tables.time_unit == "s"
        and tables.interactions[schema.TIMESTAMP].max() is not None
    ):
        tables.notes.append("timestamps look like clock times in seconds: time_unit=s")
    return with_natural_titles(tables) if natural_titles else tables


def check_options(
    *,
    time_unit: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    time_col: str | None = None,
    **others: Any,
) -> None:
    """ConfigError for values of the reader's options that cannot be, before anything is read."""
    from hllm.data.tables.schema import check_unit

    check_unit(time_unit)
    check_encoding(encoding)
    if delimiter is not None:
        check_delimiter(delimiter)
    if _is_none(time_col) and time_unit not in (None, "index"):
        raise ConfigError(f"time_unit={time_unit} with time_col=none: row numbers have no unit; leave it out")


def _is_none(time_col: str | None) -> bool:
    return time_col is not None and time_col.lower() == "none"


# ------------------------------------------------------------------------- files


def _path(folder: Path | str | None, name: str, file: Path | str | None) -> Path | None:
    """The file the user named (also relative to the folder), or the one in the folder by its usual name."""
    if file is not None:
        path = Path(file)
        if not path.exists() and folder is not None and (Path(folder) / path).exists():
            return Path(folder) / path
        return path
    if folder is None:
        return None
    found = optional_file(folder, *(pattern.format(name) for pattern in DEFAULT_NAMES))
    if found is None and name == "interactions":
        return first_file(folder, "interactions.csv", advice="Name the file with --interactions FILE")
    return found


# ------------------------------------------------------------------------- values


def _row_number_times(events: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    from hllm.data.tables.schema import TIMESTAMP

    events = events.drop(TIMESTAMP, strict=False)
    return events.with_columns(pl.int_range(events.height, dtype=pl.Int64).alias(TIMESTAMP))


def _names(text_cols: str | Sequence[str] | None) -> list[str] | None:
    if text_cols is None:
        return None
    names = text_cols.split(",") if isinstance(text_cols, str) else list(text_cols)
    return [name.strip() for name in names if name.strip()]


def _with_file(
    message: str, paths: dict[str, Path | None], header: dict[str, bool], frames: dict[str, pl.DataFrame]
) -> str:
    """Say which file a message is about, give a row of a text file as its line, and the next option."""
    table = next((n for n in ("items", "users") if re.match(f"{n} (table|column)", message)), "interactions")
    path = paths[table]
    if path is not None and is_untyped(path):
        shift = 2 if header.get(table, True) else 1
        message = re.sub(r"\brow (\d+)", lambda m: f"line {int(m[1]) + shift}", message)
    message = re.sub(r"columns=\{[^}]*\} \(([^)]*)\)", r"\1", message)  # the words of Python, then ours
    if table != "interactions":  # they have options of their own
        message = message.replace("--item-col", "--items-id-col").replace("--user-col", "--users-id-col")
    if "has no column" in message:
        named = header.get(table, True) and path is not None and is_untyped(path)
        message += _next_option(message, table, frames[table].columns if named else ())
    return f"{path}: {message}"


def _next_option(message: str, table: str, columns: Sequence[str]) -> str:
    """What else may help where a column is missing: rows without a header, or without times."""
    if table == "items" and "--items-id-col NAME" in message and columns:
        return "; if the first line is data: --no-items-header --items-id-col 1"
    if table == "interactions" and any(re.fullmatch(r"\d+(\.\d+)?", name) for name in columns):
        return f". If the first line is data: --no-header --user-col 1 --item-col 2 --time-col {len(columns)}"
    return ": --time-col none" if "row number" in message else ""


SOURCES = (
    Source(
        name="tabular",
        summary="your own CSV, TSV, Parquet or JSON lines: --interactions FILE [--items FILE] [--users FILE]",
        reader="hllm.data.sources.tabular:read_tabular",
        check="hllm.data.sources.tabular:check_options",
        licence="yours",
    ),
)
