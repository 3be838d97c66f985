"""Item files of millions of records to a table of texts, holding only what is wanted.

Records are JSON or Python literals, one a line, or rows of a CSV file whose quoted fields may
span lines. Items that nobody asked for are recognised by their identifier before anything else
of them is parsed. Of an item that occurs twice, the first record with a text counts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.reading.lines import decode, numbered_records, read_line_blocks
from hllm.data.reading.literals import LiteralScanner, parse_record
from hllm.data.reading.textfiles import bad_line, check_columns, check_width
from hllm.data.tables.schema import ITEM_ID
from hllm.data.tables.values import clean_id, clean_text, is_missing
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

ROWS = 50_000  # rows that are Python objects at a time
UNWANTED: Mapping[str, Any] = {}  # what stands for a record that need not be parsed
LONGEST_FIELD = 1 << 24  # characters; beyond it a quote was never closed


@dataclass(frozen=True)
class Field:
    """A text column: the names under which files have it, and what makes a text of its value."""

    names: tuple[str, ...]
    clean: Callable[[Any], str | None] = clean_text


def read_catalogue(
    path: Path, key: str, fields: Mapping[str, Field], wanted: Container[str] | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Items of a file of records, one a line: item_id and the `fields` as strings, and what was met.

    `key` is the records' name of the identifier; `wanted` None takes all items. Raises DataError
    for a line that is no record, naming it.
    """
    return _collect(_records(path, key, fields, wanted), fields, path)


def read_item_csv(
    path: Path, fields: Mapping[str, Field], wanted: Container[str] | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Items of a CSV file with a header that has item_id; otherwise as `read_catalogue`."""
    return _collect(_csv_records(path, fields, wanted), fields, path)


def _collect(
    records: Iterator[tuple[Any, ...]], fields: Mapping[str, Field], path: Path
) -> tuple[pl.DataFrame, dict[str, int]]:
    import polars as pl

    schema = dict.fromkeys((ITEM_ID, *fields), pl.String)
    counts: dict[str, int] = {}
    pieces = [pl.DataFrame(schema=schema)]
    rows: list[tuple[Any, ...]] = []
    seen: set[str] = set()
    textless: dict[str, tuple[Any, ...]] = {}
    for row in records:
        item = row[0]
        if not item:
            counts["item_records_without_id"] = counts.get("item_records_without_id", 0) + 1
            continue
        if item in seen or item in textless:
            counts["duplicate_items"] = counts.get("duplicate_items", 0) + 1
        if item in seen:
            continue
        if not any(row[1:]):
            textless.setdefault(item, row)
            continue
        textless.pop(item, None)
        seen.add(item)
        rows.append(row)
        if len(rows) == ROWS:
            pieces.append(pl.DataFrame(rows, schema=schema, orient="row"))
            rows = []
    rows.extend(textless.values())
    pieces.append(pl.DataFrame(rows, schema=schema, orient="row"))
    frame = pl.concat(pieces, rechunk=False)
    if not frame.height:
        raise DataError(f"{path} has none of the items of the interactions; are both of one data set?")
    return frame, counts


# ----------------------------------------------------------------------------- records


def _records(
    path: Path, key: str, fields: Mapping[str, Field], wanted: Container[str] | None
) -> Iterator[tuple[Any, ...]]:
    names = [name for field in fields.values() for name in field.names]
    scan, quick = LiteralScanner([key, *names]), _quick_id(key)

    def parse(raw: bytes) -> Mapping[str, Any]:
        if wanted is not None and (item := quick(raw)) is not None and clean_id(item) not in wanted:
            return UNWANTED
        # A Python literal never starts with a double quote in these files, JSON always does.
        return parse_record(raw) if raw.startswith(b'{"') else scan(raw)

    problem = "not an item ({}); fix the line, or download the file again"
    for _, record in numbered_records(path, parse, problem):
        item = _item_id(record.get(key))
        if record is not UNWANTED and (wanted is None or item in wanted or not item):
            yield (item, *_texts(record, fields))


def _item_id(value: Any) -> str | None:
    """An item's identifier as text; None where there is none."""
    return None if is_missing(value) else str(clean_id(value)) or None


def _texts(record: Mapping[str, Any], fields: Mapping[str, Field]) -> Iterator[str | None]:
    for field in fields.values():
        values = (field.clean(record[name]) for name in field.names if name in record)
        yield next((value for value in values if value is not None), None)


def _quick_id(key: str) -> Callable[[bytes], str | None]:
    """A function that finds a line's identifier without parsing it, or returns None if it can't tell.

    Amazon's 2014 records begin with it. In JSON the bytes `"asin": "` can't be part of a text,
    where quotes have a backslash before them; they could still be in a record within the record,
    so they must occur once.
    """
    start = re.compile(rf"\{{'{key}': '([^'\\]*+)'".encode())
    needle = f'"{key}": "'.encode()
    width = len(needle)

    def find(raw: bytes) -> str | None:
        match = start.match(raw)
        if match is not None:
            return decode(match[1])
        if raw.startswith(b'{"'):
            at = raw.find(needle)
            if at > 0 and raw[at - 1] != 0x5C and raw.find(needle, at + 1) < 0:
                end = raw.find(b'"', at + width)
                if end > 0 and b"\\" not in raw[at + width : end]:
                    return decode(raw[at + width : end])
        return None

    return find


# ----------------------------------------------------------------------------- CSV


def _csv_records(
    path: Path, fields: Mapping[str, Field], wanted: Container[str] | None
) -> Iterator[tuple[Any, ...]]:
    rows = numbered_csv(path)
    header = [name.strip().lower() for name in next(rows)[1]]
    check_width(path, header)
    check_columns(path, header, [ITEM_ID])
    id_at = header.index(ITEM_ID)
    found = {c: next((n for n in f.names if n in header), None) for c, f in fields.items()}
    if not any(found.values()):
        check_columns(path, header, [next(iter(fields))])
    at = [None if name is None else header.index(name) for name in found.values()]
    cleaners = [field.clean for field in fields.values()]
    for number, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            problem = f"{len(row)} fields where {len(header)} are expected; text with commas needs quotes"
            raise bad_line(path, number, problem, ",".join(row))
        item = _item_id(row[id_at])
        if wanted is None or item in wanted or not item:
            texts = (None if i is None else clean(row[i]) for i, clean in zip(at, cleaners, strict=True))
            yield (item, *texts)


def numbered_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file of any size, each with the number of the line that it begins on.

    A quote inside an unquoted field is text. One that is opened and never closed, or followed by
    more text, is a DataError naming the line it begins on: it would swallow the rows after it.
    """
    previous = csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(_text_lines(path), strict=True)
    number = 1
    try:
        for row in reader:
            yield number, row
            number = reader.line_num + 1
    except csv.Error as err:
        what = {"unexpected end of data": "a quote is opened and never closed"}.get(str(err), str(err))
        if "field larger" in what:
            what = "a quote is opened and never closed"
        what += "; double the quotes inside a quoted text"
        raise bad_line(path, number, what, _line(path, number)) from err
    finally:
        csv.field_size_limit(previous)


def _text_lines(path: Path) -> Iterator[str]:
    for _, lines in read_line_blocks(path):
        for raw in lines:
            yield decode(raw) + "\n"


def _line(path: Path, wanted: int) -> str:
    for number, lines in read_line_blocks(path):
        if wanted < number + len(lines):
            return decode(lines[wanted - number])
    return ""
