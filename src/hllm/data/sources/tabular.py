"""Anyone's tables: CSV, TSV and other delimited text, Parquet, JSON lines; `.gz` of each.

The kind is told by the name's ending. Everything in a text file is read as text first, so
that identifiers keep their zeros (case D1) and times keep their digits.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.sources.cleaning import clean_text
from hllm.data.sources.delimited import read_delimited
from hllm.data.sources.spec import Source
from hllm.data.sources.textfiles import bad_line, find_file, read_utf8, split_lines
from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.schema import Tables

PARQUET, JSON = (".parquet", ".pq"), (".jsonl", ".ndjson", ".json")
DELIMITED = (".csv", ".tsv", ".txt", ".tab", ".dat", ".data")
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
    natural_titles: bool = False,
) -> Tables:
    """Read interactions and, where given, items and users.

    Files not named are looked for in `folder` as interactions.*, items.* and users.*. The
    columns are user_id, item_id, timestamp and rating unless told otherwise (items and users
    may keep the usual names); `header=False` calls those of the interactions "1", "2", ...
    `time_col="none"`: rows are in order already, and the row number is the time. `text_cols` (a
    list, or names with commas between) are the text fields in prompt order, by default every
    text column of the items. `time_unit` is guessed from the magnitude of the times unless
    given, and the guess is noted. `delimiter` is guessed from the first line.

    Raises DataError for files, columns or values that cannot be used.
    """
    from hllm.data import schema

    reading = _Reading(delimiter, encoding, header)
    files = {"interactions": interactions, "items": items, "users": users}
    paths = {name: _path(folder, name, file) for name, file in files.items()}
    main = paths["interactions"]
    if main is None:
        raise DataError("no interactions: pass --interactions FILE, or --from DIR with interactions.csv")
    frames = {name: reading.table(path, name) for name, path in paths.items() if path is not None}
    events = frames["interactions"]
    columns = {schema.USER_ID: user_col, schema.ITEM_ID: item_col, schema.RATING: rating_col}
    if time_col is not None and time_col.lower() == "none":
        events, time_unit = _row_number_times(events, time_unit), "index"
    else:
        columns[schema.TIMESTAMP] = time_col
    fields = _names(text_cols)
    catalogue, notes = _text_table(
        _keyed(frames.get("items"), schema.ITEM_ID, item_col), fields, natural_titles
    )
    people = _keyed(frames.get("users"), schema.USER_ID, user_col)
    try:
        tables = schema.to_tables(
            events,
            catalogue,
            None if people is None else _numbers(people),
            columns={name: column for name, column in columns.items() if column is not None},
            text_fields=fields,
            time_unit=time_unit,
            text_ids=not _is(main, PARQUET),
        )
    except DataError as err:
        raise DataError(_with_file(str(err), paths, header, events.columns)) from err
    tables.notes += notes
    return tables


# ------------------------------------------------------------------------- files


class _Reading:
    """How files are read; the same for every file of a call."""

    def __init__(self, delimiter: str | None, encoding: str | None, header: bool) -> None:
        self.delimiter, self.encoding, self.header = delimiter, encoding, header

    def table(self, path: Path, name: str) -> pl.DataFrame:
        if _is(path, PARQUET):
            return _parquet(path)
        if _is(path, JSON):
            return _json_lines(path, read_utf8(path, self.encoding))
        if not _is(path, DELIMITED):
            raise DataError(
                f"{path}: unknown kind of file; valid endings: "
                f"{', '.join(DELIMITED + PARQUET + JSON)}, each also with .gz"
            )
        data = read_utf8(path, self.encoding)
        delimiter = self.delimiter or ("\t" if _is(path, (".tsv", ".tab")) else None)
        columns = None
        if not self.header and name == "interactions":
            width = read_delimited(path, data[: data.find(b"\n") + 1 or len(data)], delimiter).width
            columns = [str(i + 1) for i in range(width)]
        return read_delimited(path, data, delimiter, columns)


def _is(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(endings)


def _path(folder: Path | str | None, name: str, file: Path | str | None) -> Path | None:
    """The file the user named (also relative to the folder), or the one in the folder by its usual name."""
    if file is not None:
        path = Path(file)
        if not path.exists() and folder is not None and (Path(folder) / path).exists():
            return Path(folder) / path
        return path
    if folder is None:
        return None
    for pattern in DEFAULT_NAMES:
        found = find_file(folder, pattern.format(name), required=False)
        if found is not None:
            return found
    if name == "interactions":
        find_file(folder, "interactions.csv", advice="Name the file with --interactions FILE")
    return None


def _parquet(path: Path) -> pl.DataFrame:
    import polars as pl

    if not path.is_file():
        read_utf8(path)  # says what is wrong with the path
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as err:
        raise DataError(f"{path} is not a sound Parquet file: {str(err).splitlines()[0]}") from err


def _json_lines(path: Path, data: bytes) -> pl.DataFrame:
    """JSON lines, or one JSON array of objects. Numbers stay numbers, strings strings."""
    import polars as pl

    if data.lstrip()[:1] != b"[":
        try:
            return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as err:
            rows = _json_objects(path, data)
            problem: Exception = err
    else:
        try:
            rows = json.loads(data)
        except ValueError as err:
            raise DataError(f"{path} is not JSON: {err}") from err
        problem = DataError("not a list of objects")
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as err:
        raise DataError(f"{path}: {str(err or problem).splitlines()[0]}") from err


def _json_objects(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Line by line, to name the one that is wrong."""
    rows = []
    lines, cut = split_lines(data)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as err:
            raise bad_line(path, number, f"not JSON ({err})", line, cut and number == len(lines)) from err
        if not isinstance(value, dict):
            raise bad_line(path, number, "not a JSON object", line)
        rows.append(value)
    return rows


# ------------------------------------------------------------------------- values


def _row_number_times(events: pl.DataFrame, unit: str | None) -> pl.DataFrame:
    import polars as pl

    from hllm.data.schema import TIMESTAMP

    if unit not in (None, "index"):
        raise ConfigError(f"time_unit={unit} with time_col=none: row numbers have no unit; leave it out")
    events = events.drop(TIMESTAMP, strict=False)
    return events.with_columns(pl.int_range(events.height, dtype=pl.Int64).alias(TIMESTAMP))


def _keyed(frame: pl.DataFrame | None, name: str, column: str | None) -> pl.DataFrame | None:
    """The table with its identifier first. Tables may differ: the user's column, or the usual name."""
    if frame is None:
        return None
    key = column if column is not None and column in frame.columns else name
    if key not in frame.columns:
        return frame  # `to_tables` says what is missing
    return frame.rename({key: column or name}).select(column or name, *(c for c in frame.columns if c != key))


def _text_table(
    items: pl.DataFrame | None, fields: list[str] | None, natural_titles: bool
) -> tuple[pl.DataFrame | None, list[str]]:
    """The items with numbers told from text, and text cleaned: entities, printed lists, NaN."""
    import polars as pl

    from hllm.data.sources.movielens import natural_title

    if items is None:
        return None, []
    items = _numbers(items, fields or ())
    columns, notes = [items.to_series(0)], []
    for column in items.iter_columns():
        if column.name == columns[0].name:
            continue
        if column.dtype == pl.String:
            texts = [None if v == "[]" else clean_text(v) for v in column]
            joined = sum(_is_list(v) and not _is_list(t) for v, t in zip(column, texts, strict=True))
            if joined:
                notes.append(f"{column.name}: {joined:,} values written as lists were joined to plain text")
            if natural_titles and column.name == "title":
                texts = [v and natural_title(v) for v in texts]
            column = pl.Series(column.name, texts, dtype=pl.String)
        columns.append(column)
    return pl.DataFrame(columns), notes


def _is_list(text: str | None) -> bool:
    return text is not None and text.startswith(("['", '["'))


def _numbers(frame: pl.DataFrame, texts: Sequence[str] = ()) -> pl.DataFrame:
    """Text columns in which every value is a plain number, as numbers; "02460" is none.

    The first column, an identifier, and those named in `texts` stay as they are.
    """
    import polars as pl

    for name, kind in list(frame.schema.items())[1:]:
        if kind != pl.String or name in texts or frame[name].null_count() == frame.height:
            continue
        present = frame[name].drop_nulls()
        if present.str.contains(r"^-?(0|[1-9]\d{0,17})$").all():
            frame = frame.with_columns(pl.col(name).cast(pl.Int64))
        elif present.str.contains(r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$").all():
            frame = frame.with_columns(pl.col(name).cast(pl.Float64))
    return frame


def _names(text_cols: str | Sequence[str] | None) -> list[str] | None:
    if text_cols is None:
        return None
    names = text_cols.split(",") if isinstance(text_cols, str) else list(text_cols)
    return [name.strip() for name in names if name.strip()]


def _with_file(message: str, paths: dict[str, Path | None], header: bool, columns: Sequence[str]) -> str:
    """Say which file a message is about, give a row of a text file as its line, and the next option."""
    table = next((n for n in ("items", "users") if message.startswith(f"{n} table")), "interactions")
    path = paths[table]
    if path is not None and _is(path, DELIMITED):
        shift = 2 if header else 1
        message = re.sub(r"\brow (\d+)", lambda m: f"line {int(m[1]) + shift}", message)
    if table == "interactions" and "has no column" in message:
        if header and any(re.fullmatch(r"\d+(\.\d+)?", name) for name in columns):
            message += ". If the first line is data: --no-header --user-col 1 --item-col 2 --time-col 4"
        elif "row number" in message:
            message += ": --time-col none"
    return f"{path}: {message}"


SOURCES = (
    Source(
        name="tabular",
        summary="your own CSV, TSV, Parquet or JSON lines: --interactions FILE [--items FILE] [--users FILE]",
        reader="hllm.data.sources.tabular:read_tabular",
        licence="yours",
    ),
)
