"""Interaction files of millions of lines to a table: who, what, when, and the rating.

The fast way is polars' CSV parser with the types demanded. It neither says where a line is wrong
nor minds a line that is too short, so whatever it refuses or leaves empty is read again by
Python, line by line: that way either reads what the fast one could not (quoted fields, times
such as `1369699200.0`) or raises an error naming the line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.reading.delimited import split_line
from hllm.data.reading.lines import decode, numbered_records, numbered_rows, read_line_blocks
from hllm.data.reading.literals import parse_record
from hllm.data.reading.textfiles import bad_line, check_width
from hllm.data.tables.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

# Names under which the published files have these columns.
COLUMN_NAMES = {
    **dict.fromkeys(("user_id", "userid", "user", "reviewerid"), USER_ID),
    **dict.fromkeys(("parent_asin", "item_id", "itemid", "item", "asin"), ITEM_ID),
    **dict.fromkeys(("timestamp", "time", "unixreviewtime"), TIMESTAMP),
    **dict.fromkeys(("rating", "overall", "score"), RATING),
}
REQUIRED = (USER_ID, ITEM_ID, TIMESTAMP)
ROWS = 200_000  # rows that the slow way holds as Python objects
LONGEST_INTEGER = 19  # digits


def read_events(path: Path, order: Sequence[str] | None = None) -> pl.DataFrame:
    """A CSV file (plain or gzip) as user_id, item_id (String), timestamp (Int64)[, rating (Float64)].

    Columns go by the header's names; `order` names those of a file without a header, and is not
    needed otherwise. Rows stay in file order. Raises DataError naming the file, the line, the
    value and what to do.
    """
    names, header = _columns(path, order)
    frame = _fast(path, names, header)
    if frame is None:
        rows = _csv_rows(path, names, header)
        frame = _frame(rows, RATING in names)
    if not frame.height:
        raise DataError(f"{path} has no interactions below its first line; download it again")
    return frame


def first_fields(path: Path) -> list[str]:
    """Fields of the first line of a CSV file."""
    _, lines = next(read_line_blocks(path, 1 << 16))
    return [field.strip() for field in split_line(decode(lines[0]), ",")[0]]


def _columns(path: Path, order: Sequence[str] | None) -> tuple[list[str], bool]:
    """Canonical names of the file's columns ("" for others), and whether it has a header."""
    first = first_fields(path)
    check_width(path, first)
    names = [COLUMN_NAMES.get(name.lower(), "") for name in first]
    if any(names):
        missing = [name for name in REQUIRED if name not in names]
        twice = {name for name, count in Counter(names).items() if name and count > 1}
        if "parent_asin" in first and twice == {ITEM_ID}:  # 2023: asin is the variant, parent_asin the item
            names = ["" if f == "asin" else n for f, n in zip(first, names, strict=True)]
        elif missing or twice:
            wrong = f"no column {missing[0]}" if missing else f"two columns for {twice.pop()}"
            wrong += "; expected user_id, item_id, timestamp and perhaps rating, in any order"
            raise bad_line(path, 1, wrong, ",".join(first))
        return names, True
    if order is None:
        raise bad_line(
            path,
            1,
            "not a header; expected the column names item_id, user_id, timestamp in any "
            "order, add them as the first line",
            ",".join(first),
        )
    if len(first) != len(order):
        raise bad_line(
            path,
            1,
            f"{_count(len(first))} where {len(order)} are expected ({','.join(order)})",
            ",".join(first),
        )
    return list(order), False


def _fast(path: Path, names: list[str], header: bool) -> pl.DataFrame | None:
    """The table by polars' parser, or None if there is anything it does not take as it is."""
    import polars as pl

    types = {TIMESTAMP: pl.Int64, RATING: pl.Float64}
    schema = {name or f"other {i}": types.get(name, pl.String) for i, name in enumerate(names)}
    wanted = [name for name in (*REQUIRED, RATING) if name in names]
    try:
        frame = pl.read_csv(
            path,
            has_header=header,
            schema=schema,
            columns=[i for i, name in enumerate(names) if name],
            quote_char=None,
            low_memory=True,
        ).select(wanted)
    except (pl.exceptions.PolarsError, OSError):
        return None
    if any(frame[name].null_count() for name in wanted) or _has_quotes(frame):
        return None
    return frame


def _has_quotes(frame: pl.DataFrame) -> bool:
    """Whether identifiers are quoted: a file that quotes one field quotes them all."""
    first = frame.head(1000)
    return any(bool(first[name].str.starts_with('"').any()) for name in (USER_ID, ITEM_ID))


def _csv_rows(path: Path, names: list[str], header: bool) -> Iterator[tuple[Any, ...]]:
    """Rows (user, item, time, rating) of a CSV file, checked one by one."""
    at = [names.index(name) if name in names else -1 for name in (*REQUIRED, RATING)]
    wanted = f"{len(names)} are expected"
    for number, fields in numbered_rows(
        path, len(names), lambda line: split_line(line, ",")[0], wanted, header
    ):
        user, item, time = (fields[j] for j in at[:3])
        yield checked_row(path, number, user, item, time, fields[at[3]] if at[3] >= 0 else None)


def read_reviews(path: Path, names: Mapping[str, str]) -> pl.DataFrame:
    """As `read_events`, from reviews, one JSON object (or Python literal) a line.

    `names` gives the reviews' names of user_id, item_id, timestamp and rating.
    """
    frame = _frame(_review_rows(path, names), True)
    if not frame.height:
        raise DataError(f"{path} has no reviews; download it again")
    return frame


def _review_rows(path: Path, names: Mapping[str, str]) -> Iterator[tuple[Any, ...]]:
    keys = [names[name] for name in (*REQUIRED, RATING)]

    def parse(raw: bytes) -> dict[str, Any]:
        review = parse_record(raw)
        absent = [key for key in keys[:3] if review.get(key) is None]
        if absent:
            raise ValueError(f"the review has no {absent[0]!r}")
        return review

    for number, review in numbered_records(path, parse):
        yield checked_row(path, number, *(review.get(key) for key in keys))


def checked_row(path: Path, number: int, user: Any, item: Any, time: Any, rating: Any) -> tuple[Any, ...]:
    """One interaction with its types; DataError names what is wrong with it."""
    if user == "" or item == "":
        empty = USER_ID if user == "" else ITEM_ID
        raise bad_line(path, number, f"{empty} is empty", f"{user},{item},{time}")
    return str(user), str(item), _time(path, number, time), _rating(path, number, rating)


def _time(path: Path, number: int, value: Any) -> int:
    """Whole ticks: an integer, or a float that stands for one exactly."""
    text = str(value).strip()
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < LONGEST_INTEGER:
        return int(text)
    try:
        exact = float(text)
    except ValueError:
        exact = float("nan")
    if not exact.is_integer() or abs(exact) > 2**53:
        raise bad_line(path, number, "timestamp is not a whole number of seconds or milliseconds", text)
    return int(exact)


def _rating(path: Path, number: int, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        rating = float(value)
    except (TypeError, ValueError) as err:
        raise bad_line(path, number, "rating is not a number", str(value)) from err
    return rating if rating == rating else None


def _frame(rows: Iterable[tuple[Any, ...]], rated: bool) -> pl.DataFrame:
    """A table from rows, made in pieces so that few are Python objects at a time."""
    import polars as pl

    schema = {USER_ID: pl.String, ITEM_ID: pl.String, TIMESTAMP: pl.Int64, RATING: pl.Float64}
    pieces, piece = [pl.DataFrame(schema=schema)], []
    for row in rows:
        piece.append(row)
        if len(piece) == ROWS:
            pieces.append(pl.DataFrame(piece, schema=schema, orient="row"))
            piece = []
    pieces.append(pl.DataFrame(piece, schema=schema, orient="row"))
    frame = pl.concat(pieces)
    return frame if rated else frame.drop(RATING)


def _count(n: int) -> str:
    return f"{n} field{'s' * (n != 1)}"
