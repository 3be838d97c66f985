"""Anyone's tables: CSV, TSV and other delimited text, Parquet, JSON lines; `.gz` of each.

The kind is told by the name's ending. Everything in a text file is read as text first, so
that identifiers keep their zeros (case D1) and times keep their digits.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.reading.cleaning import clean_text
from hllm.data.reading.delimited import check_delimiter, read_delimited
from hllm.data.reading.literals import parse_json
from hllm.data.reading.textfiles import (
    bad_line,
    check_encoding,
    check_width,
    find_file,
    read_utf8,
    split_lines,
)
from hllm.data.sources.spec import Source
from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.tables.schema import Tables

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
    reading = _Reading(delimiter, encoding, {"interactions": header, "items": items_header})
    files = {"interactions": interactions, "items": items, "users": users}
    paths = {name: _path(folder, name, file) for name, file in files.items()}
    main = paths["interactions"]
    if main is None:
        raise DataError("no interactions: pass --interactions FILE, or --from DIR with interactions.csv")
    frames = {name: reading.table(path, name) for name, path in paths.items() if path is not None}
    events = frames["interactions"]
    columns = {schema.USER_ID: user_col, schema.ITEM_ID: item_col, schema.RATING: rating_col}
    if _is_none(time_col):
        events, time_unit = _row_number_times(events), "index"
    else:
        columns[schema.TIMESTAMP] = time_col
    fields = _names(text_cols)
    item_key, catalogue = _keyed(frames.get("items"), items_id_col, item_col, schema.ITEM_ID)
    user_key, people = _keyed(frames.get("users"), users_id_col, user_col, schema.USER_ID)
    catalogue, notes = _text_table(catalogue, fields, natural_titles)
    try:
        tables = schema.to_tables(
            events,
            catalogue,
            None if people is None else _numbers(people),
            columns={name: column for name, column in columns.items() if column is not None},
            text_fields=fields,
            time_unit=time_unit,
            text_ids=not _is(main, PARQUET),
            item_key=item_key,
            user_key=user_key,
        )
    except DataError as err:
        raise DataError(_with_file(str(err), paths, reading.header, frames)) from err
    if (
        time_unit is None
        and tables.time_unit == "s"
        and tables.interactions[schema.TIMESTAMP].max() is not None
    ):
        tables.notes.append("timestamps look like clock times in seconds: time_unit=s")
    tables.notes += notes
    return tables


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


class _Reading:
    """How files are read; the same for every file of a call."""

    def __init__(self, delimiter: str | None, encoding: str | None, header: dict[str, bool]) -> None:
        self.delimiter, self.encoding, self.header = delimiter, encoding, header

    def table(self, path: Path, name: str) -> pl.DataFrame:
        if _is(path, PARQUET):
            return _parquet(path)
        if _is(path, JSON):
            return _json_lines(path, read_utf8(path, self.encoding))
        if not _is(path, DELIMITED):
            if _is(path, (".inter", ".item", ".user")):
                raise DataError(
                    f"{path} is one of RecBole's atomic files; prepare its folder with: "
                    f"hllm data prepare recbole --from {path.parent} --out DATASET"
                )
            raise DataError(
                f"{path}: unknown kind of file; valid endings: "
                f"{', '.join(DELIMITED + PARQUET + JSON)}, each also with .gz"
            )
        data = read_utf8(path, self.encoding)
        delimiter = self.delimiter or ("\t" if _is(path, (".tsv", ".tab")) else None)
        columns = None
        if not self.header.get(name, True):
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
        check_width(path, list(pl.read_parquet_schema(path)))
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
            rows = parse_json(data)
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
            value = parse_json(line)
        except ValueError as err:
            raise bad_line(path, number, f"not JSON ({err})", line, cut and number == len(lines)) from err
        if not isinstance(value, dict):
            raise bad_line(path, number, "not a JSON object", line)
        rows.append(value)
    return rows


# ------------------------------------------------------------------------- values


def _row_number_times(events: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    from hllm.data.tables.schema import TIMESTAMP

    events = events.drop(TIMESTAMP, strict=False)
    return events.with_columns(pl.int_range(events.height, dtype=pl.Int64).alias(TIMESTAMP))


def _keyed(
    frame: pl.DataFrame | None, own: str | None, column: str | None, usual: str
) -> tuple[str | None, pl.DataFrame | None]:
    """Name of the table's identifier, and the table with it first.

    That is `own`, or else the interactions' `column` of it, or else the `usual` name.
    """
    if frame is None:
        return None, None
    key = own or next((name for name in (column, usual) if name in frame.columns), usual)
    if key not in frame.columns:
        return key, frame  # `to_tables` says what is missing
    return key, frame.select(key, *(c for c in frame.columns if c != key))


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


def _with_file(
    message: str, paths: dict[str, Path | None], header: dict[str, bool], frames: dict[str, pl.DataFrame]
) -> str:
    """Say which file a message is about, give a row of a text file as its line, and the next option."""
    table = next((n for n in ("items", "users") if re.match(f"{n} (table|column)", message)), "interactions")
    path = paths[table]
    if path is not None and _is(path, DELIMITED):
        shift = 2 if header.get(table, True) else 1
        message = re.sub(r"\brow (\d+)", lambda m: f"line {int(m[1]) + shift}", message)
    message = re.sub(r"columns=\{[^}]*\} \(([^)]*)\)", r"\1", message)  # the words of Python, then ours
    if table != "interactions":  # they have options of their own
        message = message.replace("--item-col", "--items-id-col").replace("--user-col", "--users-id-col")
    if "has no column" in message:
        named = header.get(table, True) and path is not None and _is(path, DELIMITED)
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
