"""RecBole's atomic files: NAME.inter, NAME.item and NAME.user, tab-separated, types in the header.

    user_id:token   item_id:token   rating:float   timestamp:float
    item_id:token   title:token_seq   price:float   categories:token_seq

There is no quoting in them: a quote is a character of the text (case D4). `token` and
`token_seq` columns are texts as they stand, `float` columns numbers; `float_seq` columns stay
texts. An interaction file may instead hold a user's items as a sequence (`item_id_list:token_seq`
with the target in `item_id`), as the files of many sequential models do.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hllm.data.reading.event_files import REQUIRED, ROWS, checked_row
from hllm.data.reading.files import files_named, need_folder
from hllm.data.reading.lines import decode, numbered_lines, numbered_rows, read_line_blocks
from hllm.data.reading.textfiles import bad_line, check_columns
from hllm.data.sources.movielens import with_natural_titles
from hllm.data.sources.spec import Source
from hllm.data.tables.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, Tables, to_tables
from hllm.errors import DataError, unknown

if TYPE_CHECKING:
    import polars as pl

TYPES = ("token", "token_seq", "float", "float_seq")
SEQUENCE = "item_id_list"


@dataclass(frozen=True)
class Atomic:
    """One atomic file, all columns as strings: `types` by column, `frame` its rows in order."""

    path: Path
    types: dict[str, str]
    frame: pl.DataFrame


def read_recbole(
    folder: Path | None,
    *,
    natural_titles: bool = False,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    text_fields: Sequence[str] | None = None,
    time_unit: str | None = None,
) -> Tables:
    """Read NAME.inter and, where present, NAME.item and NAME.user.

    `name` is needed only if the folder holds several data sets. `columns` maps user_id, item_id,
    timestamp and rating to the file's names where these differ. `text_fields`: by default the
    token_seq columns of the items in file order, or the token columns if there is none.
    `natural_titles` turns "Matrix, The (1999)" into "The Matrix (1999)" in columns called title.
    Raises DataError naming the file and line of anything that cannot be used.
    """
    paths = _inter_files(need_folder(folder), name)
    names = {key: (columns or {}).get(key, key) for key in (USER_ID, ITEM_ID, TIMESTAMP, RATING)}
    tables = [read_atomic(path) for path in paths]
    if all(SEQUENCE in table.types for table in tables):
        events, time_unit = _unrolled(tables, names), "index"
    else:
        events = _events(tables, names)
    stem = paths[0].name.split(".")[0]
    items = _side(paths[0].parent / f"{stem}.item", names[ITEM_ID], ITEM_ID)
    users = _side(paths[0].parent / f"{stem}.user", names[USER_ID], USER_ID)
    if items is None:
        result = to_tables(events, None, _frame(users), time_unit=time_unit, text_ids=True)
        result.notes.append(f"no {stem}.item beside {paths[0].name}: items have no texts")
        return result
    fields = list(text_fields) if text_fields is not None else default_text_fields(items.types)
    for field in fields:
        if field not in items.types:
            raise DataError(f"{items.path}: {unknown('text field', field, items.types)}")
    result = to_tables(
        events, items.frame, _frame(users), text_fields=fields, time_unit=time_unit, text_ids=True
    )
    return with_natural_titles(result, [f for f in fields if "title" in f]) if natural_titles else result


def default_text_fields(types: Mapping[str, str]) -> list[str]:
    """The token_seq columns, or the token columns if there is none, without the identifier."""
    for kind in ("token_seq", "token"):
        fields = [name for name, own in types.items() if own == kind and name != ITEM_ID]
        if fields:
            return fields
    return []


def read_atomic(path: Path) -> Atomic:
    """An atomic file as strings (empty fields null). DataError for a bad header or an uneven line."""
    import polars as pl

    types = _header(path, decode(next(read_line_blocks(path))[1][0]))
    wanted = f"the header has {len(types)}"
    rows = numbered_rows(path, len(types), lambda line: line.split("\t"), wanted)
    schema = dict.fromkeys(types, pl.String)
    pieces = [pl.DataFrame(schema=schema)]
    while piece := [fields for _, fields in islice(rows, ROWS)]:
        pieces.append(pl.DataFrame(list(zip(*piece, strict=True)), schema=schema, orient="col"))
    frame = pl.concat(pieces)
    return Atomic(path, types, frame.with_columns(pl.when(pl.all() != "").then(pl.all())))


def _header(path: Path, line: str) -> dict[str, str]:
    """Column types by name, from `user_id:token<tab>rating:float`."""
    types: dict[str, str] = {}
    if "\t" not in line:
        raise bad_line(path, 1, "only one column; columns are separated by tabs", line)
    for entry in line.split("\t"):
        name, colon, kind = entry.strip().rpartition(":")
        if not colon or kind not in TYPES:
            raise bad_line(
                path,
                1,
                f"{entry!r} is not NAME:TYPE with a type of {', '.join(TYPES)}; columns "
                "are separated by tabs",
                line,
            )
        if name in types:
            raise bad_line(path, 1, f"column {name!r} occurs twice; rename or drop one", line)
        types[name] = kind
    return types


def _inter_files(folder: Path, name: str | None) -> list[Path]:
    """The interaction file, or the files of its parts (NAME.train.inter, NAME.valid.inter, ...)."""
    found = list(files_named(folder, "*.inter"))
    found = [path for path in found if path.parent == found[0].parent]
    stems = sorted({path.name.split(".")[0] for path in found})
    if name is not None and name not in stems:
        raise DataError(f"{folder}: {unknown('data set', name, stems)} (files NAME.inter)")
    if not found:
        present = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise DataError(f"{folder} has no .inter file; it holds: {present}. Pass the folder of atomic files")
    if name is None and len(stems) > 1:
        names = ", ".join(stems)
        raise DataError(f"{folder} holds several data sets: {names}; choose one with name={stems[0]!r}")
    chosen = [path for path in found if path.name.split(".")[0] == (name or stems[0])]
    whole = [path for path in chosen if path.name.removesuffix(".gz").count(".") == 1]
    return whole[:1] or chosen


def _events(tables: Sequence[Atomic], names: Mapping[str, str]) -> pl.DataFrame:
    """Interactions of all files, checked; times and ratings still as their columns have them."""
    import polars as pl

    pieces = []
    for table in tables:
        check_columns(table.path, list(table.types), [names[key] for key in REQUIRED])
        wanted = {key: names[key] for key in (*REQUIRED, RATING) if names[key] in table.types}
        rows = table.frame.select(pl.col(column).alias(key) for key, column in wanted.items())
        typed = rows.with_columns(
            pl.col(TIMESTAMP).str.replace(r"^(-?\d+)\.0*$", "$1").cast(pl.Int64, strict=False),
            *(pl.col(c).cast(pl.Float64, strict=False) for c in (RATING,) if c in wanted),
        )
        pieces.append(typed if not _lost(rows, typed) else _checked(table.path, rows))
    return pl.concat(pieces)


def _lost(rows: pl.DataFrame, typed: pl.DataFrame) -> bool:
    """Whether a required value is missing, or a value did not survive being typed."""
    required = any(typed[key].null_count() for key in (USER_ID, ITEM_ID, TIMESTAMP))
    return required or (RATING in rows.columns and rows[RATING].null_count() != typed[RATING].null_count())


def _checked(path: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows one by one: `1.2e9` becomes an integer, what can't be used an error with its line."""
    import polars as pl

    numbers = _data_lines(path)
    out = [
        checked_row(path, number, *(("" if v is None else v) for v in row), *([None] * (4 - len(row))))
        for number, row in zip(numbers, rows.iter_rows(), strict=True)
    ]
    schema = {USER_ID: pl.String, ITEM_ID: pl.String, TIMESTAMP: pl.Int64, RATING: pl.Float64}
    return pl.DataFrame(out, schema=schema, orient="row").select(rows.columns)


def _data_lines(path: Path) -> list[int]:
    """Numbers of the lines that are rows."""
    return [number for number, _ in numbered_lines(path) if number > 1]


def _unrolled(tables: Sequence[Atomic], names: Mapping[str, str]) -> pl.DataFrame:
    """Histories out of rows (user, sequence, target): of each user the longest, in order.

    The parts of such a data set repeat each other: the row of the test part holds all others.
    """
    import polars as pl

    longest: dict[str, list[str]] = {}
    for table in tables:
        check_columns(table.path, list(table.types), [names[USER_ID], names[ITEM_ID], SEQUENCE])
        rows = table.frame.select(names[USER_ID], SEQUENCE, names[ITEM_ID]).iter_rows()
        for number, (user, before, target) in zip(_data_lines(table.path), rows, strict=True):
            if not user or not target:
                raise bad_line(table.path, number, "user or target item is empty", f"{user},{target}")
            items = [*(before or "").split(), target]
            if len(items) > len(longest.get(user, ())):
                longest[user] = items
    lengths = [len(items) for items in longest.values()]
    frame = pl.DataFrame({USER_ID: list(longest), ITEM_ID: list(longest.values())}).explode(ITEM_ID)
    return frame.with_columns(pl.Series(TIMESTAMP, [i for n in lengths for i in range(n)], dtype=pl.Int64))


def _side(path: Path, column: str, key: str) -> Atomic | None:
    """The item or user file, its identifier under the canonical name; None if there is none."""
    found = next(files_named(path.parent, glob.escape(path.name)), None)
    if found is None:
        return None
    table = read_atomic(found)
    check_columns(found, list(table.types), [column])
    if table.frame[column].null_count():
        row = int(table.frame[column].is_null().arg_max() or 0)
        raise bad_line(found, _data_lines(found)[row], f"{column} is empty", "\t".join(table.types))
    types = {key if name == column else name: kind for name, kind in table.types.items()}
    return Atomic(found, types, _numbers(table.frame.rename({column: key}), types))


def _numbers(frame: pl.DataFrame, types: Mapping[str, str]) -> pl.DataFrame:
    """`float` columns as numbers, where all their values are."""
    import polars as pl

    for name, kind in types.items():
        if kind == "float":
            numbers = frame[name].cast(pl.Float64, strict=False)
            if numbers.null_count() == frame[name].null_count():
                frame = frame.with_columns(numbers)
    return frame


def _frame(table: Atomic | None) -> pl.DataFrame | None:
    return None if table is None else table.frame


SOURCES = (
    Source(
        name="recbole",
        summary="any data set in RecBole's atomic files: NAME.inter, NAME.item, NAME.user",
        reader="hllm.data.sources.recbole:read_recbole",
        licence="that of the data set",
        citation="Zhao et al., RecBole: Towards a Unified, Comprehensive and Efficient Framework for "
        "Recommendation Algorithms, CIKM 2021 (the format)",
        size="your own files",
        page="https://recbole.io/docs/user_guide/data/atomic_files.html",
    ),
)
