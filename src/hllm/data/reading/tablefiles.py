"""Anyone's table in a file: CSV, TSV and other delimited text, Parquet, JSON lines; `.gz` of each.

The kind is told by the name's ending. Everything in a delimited file is read as text first, so
that identifiers keep their zeros (case D1) and times keep their digits.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.reading.delimited import read_delimited
from hllm.data.reading.literals import parse_json
from hllm.data.reading.textfiles import bad_line, check_width, read_utf8, split_lines
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

PARQUET, JSON = (".parquet", ".pq"), (".jsonl", ".ndjson", ".json")
DELIMITED = (".csv", ".tsv", ".txt", ".tab", ".dat", ".data")
# An escape of half a surrogate pair, perhaps of a pair: polars makes NUL of a lone one.
SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\)\\u[dD][c-fC-F]")


def read_table_file(
    path: Path, delimiter: str | None = None, encoding: str | None = None, header: bool = True
) -> pl.DataFrame:
    """The table in a file. `delimiter` None is guessed; without `header` the columns are "1", "2", ...

    Raises DataError for an unknown ending and for a file that cannot be read.
    """
    if has_ending(path, PARQUET):
        return _parquet(path)
    if has_ending(path, JSON):
        return _json(path, read_utf8(path, encoding))
    if not has_ending(path, DELIMITED):
        if has_ending(path, (".inter", ".item", ".user")):
            raise DataError(
                f"{path} is one of RecBole's atomic files; prepare its folder with: "
                f"hllm data prepare recbole --from {path.parent} --out DATASET"
            )
        raise DataError(
            f"{path}: unknown kind of file; valid endings: "
            f"{', '.join(DELIMITED + PARQUET + JSON)}, each also with .gz"
        )
    data = read_utf8(path, encoding)
    delimiter = delimiter or ("\t" if has_ending(path, (".tsv", ".tab")) else None)
    columns = None
    if not header:
        width = read_delimited(path, data[: data.find(b"\n") + 1 or len(data)], delimiter).width
        columns = [str(i + 1) for i in range(width)]
    return read_delimited(path, data, delimiter, columns)


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether the file's name ends so, packed or not."""
    return path.name.lower().removesuffix(".gz").endswith(endings)


def is_untyped(path: Path) -> bool:
    """Whether the file has text only, so that what a column is must be told by its values."""
    return not has_ending(path, PARQUET + JSON)


def _parquet(path: Path) -> pl.DataFrame:
    import polars as pl

    if not path.is_file():
        read_utf8(path)  # says what is wrong with the path
    try:
        check_width(path, list(pl.read_parquet_schema(path)))
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as err:
        raise DataError(f"{path} is not a sound Parquet file: {str(err).splitlines()[0]}") from err


def _json(path: Path, data: bytes) -> pl.DataFrame:
    """JSON lines, or one JSON array of objects. Numbers stay numbers, strings strings."""
    import polars as pl

    from hllm.data.tables.frames import frame_of

    if data.lstrip()[:1] != b"[":
        if not SURROGATE.search(data):
            try:
                return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
                pass  # Python reads more, and names the line that is wrong
        rows = _objects(path, data)
    else:
        try:
            rows = parse_json(data)
        except ValueError as err:
            raise DataError(f"{path} is not JSON: {err}") from err
        if not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path} is not a list of JSON objects")
    try:
        return frame_of(rows)
    except DataError as err:
        raise DataError(f"{path}: {err}") from err


def _objects(path: Path, data: bytes) -> list[dict[str, Any]]:
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
