"""Delimited text (CSV, TSV and kin) to a table of strings, dirt included.

Quotes are the trouble: in `5" Disk` they are text, in `"a, b"` they are syntax, and a reader
that mistakes one for the other swallows rows (case D4). A file without quotes, or with quotes
exactly as RFC 4180 has them, goes to a fast parser; any other is split here, line by line, a
quote counting as syntax only where it opens and closes a whole field.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hllm.data.reading.textfiles import bad_line, check_header
from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

DELIMITERS = (",", "\t", ";", "|")
MAX_JOINED = 1000  # lines that one quoted field may span
UNIT = b"\x1f"  # ASCII's own separator, which occurs in no text
NOT_CLOSED, LITERAL = -1, -2


def read_delimited(
    path: Path, data: bytes, delimiter: str | None = None, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """`data`, the UTF-8 content of `path`, as a frame of strings; empty fields are null.

    `columns` names the columns of a file without a header. `delimiter` None is sniffed from the
    first line. Blank lines are skipped. Raises DataError for a line whose number of fields
    differs from the header's.
    """
    import polars as pl

    first = data.split(b"\n", 1)[0].decode("utf-8")
    separator = sniff(first) if delimiter is None else check_delimiter(delimiter)
    if len(separator) > 1:  # such as "::"; the parsers below want one byte
        data, first = data.replace(separator.encode(), UNIT), first.replace(separator, UNIT.decode())
        separator = UNIT.decode()
    header = columns is None
    names = list(columns) if columns is not None else [n.strip() for n in split_line(first, separator)[0]]
    check_header(path, names)
    quoted = rfc_quotes(data, separator.encode())
    if quoted is None:
        rows = list(lenient_rows(path, data.decode("utf-8"), separator, len(names), header))
        return _null_if_empty(pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row"))
    dense = data if quoted.any or b"\n\n" not in data else re.sub(rb"\n{2,}", b"\n", data)
    try:
        frame = pl.read_csv(
            io.BytesIO(dense),
            has_header=header,
            separator=separator,
            quote_char='"' if quoted.any else None,
            infer_schema=False,
        )
    except pl.exceptions.PolarsError as err:
        raise _uneven(path, data, separator, names, header) or DataError(f"{path}: {err}") from err
    separators = data.count(separator.encode()) - quoted.separators - (len(names) - 1 if header else 0)
    blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
    if len(frame.columns) != len(names) or separators != (len(names) - 1) * (frame.height - int(blank.sum())):
        error = _uneven(path, data, separator, names, header)
        if error is not None:
            raise error
    frame.columns = names
    frame = frame.filter(~blank) if blank.any() else frame
    return _null_if_empty(frame) if quoted.any else frame


def sniff(line: str) -> str:
    """The delimiter that occurs most in the first line, outside quotes; a comma if none does."""
    bare = re.sub(r'"[^"]*"', "", line)
    counts = {d: bare.count(d) for d in DELIMITERS}
    return max(counts, key=lambda d: counts[d])


class Quotes:
    """What the quotes of a file are: any at all, and how many separators stand inside them."""

    def __init__(self, any: bool = False, separators: int = 0) -> None:
        self.any, self.separators = any, separators


def rfc_quotes(data: bytes, separator: bytes) -> Quotes | None:
    """Check that every quote is RFC 4180 syntax: around a whole field, doubled inside; else None."""
    if b'"' not in data:
        return Quotes()
    inside = covered = 0
    before, after = (b"\n", separator), (b"\n", separator, b"")
    for field in re.finditer(rb'"[^"]*+(?:""[^"]*+)*+"', data):
        start, end = field.span()
        if (start and data[start - 1 : start] not in before) or data[end : end + 1] not in after:
            return None
        text = data[start:end]
        covered += text.count(b'"')
        inside += text.count(separator)
    return Quotes(True, inside) if covered == data.count(b'"') else None


def split_line(line: str, separator: str) -> tuple[list[str], bool]:
    """Fields of one line, and whether a quoted field of it is still open at its end."""
    fields: list[str] = []
    at, is_open = 0, False
    while True:
        closing = _closing_quote(line, at, separator) if line.startswith('"', at) else LITERAL
        is_open = is_open or closing == NOT_CLOSED
        if closing >= 0:
            fields.append(line[at + 1 : closing].replace('""', '"'))
            end = closing + 1
        else:
            end = line.find(separator, at)
            end = len(line) if end < 0 else end
            fields.append(line[at:end])
        if end >= len(line):
            return fields, is_open
        at = end + len(separator)


def lenient_rows(path: Path, text: str, separator: str, width: int, header: bool) -> Iterator[list[str]]:
    """Rows of a file with stray quotes. A field that stays open takes in the lines below it only
    if these are no rows by themselves."""
    lines, cut = text.rstrip("\n").split("\n"), not text.endswith("\n")
    at = 1 if header else 0
    while at < len(lines):
        if not lines[at]:
            at += 1
            continue
        fields, is_open = split_line(lines[at], separator)
        used = 1
        if is_open and not _is_row(lines, at + 1, separator, width):
            fields, used = _joined(lines, at, separator, width) or (fields, 1)
        if len(fields) != width:
            last = at + 1 == len(lines) and len(fields) < width
            raise bad_line(path, at + 1, _count(len(fields), width), lines[at], cut and last)
        yield fields
        at += used


def _closing_quote(line: str, start: int, separator: str) -> int:
    """Index of the quote that ends the field opened at `start`; NOT_CLOSED, or LITERAL where a
    quote comes before neither a separator nor the end, so that none of them is syntax."""
    at = start + 1
    while (at := line.find('"', at)) >= 0:
        if not line.startswith('""', at):
            return at if at + 1 == len(line) or line.startswith(separator, at + 1) else LITERAL
        at += 2
    return NOT_CLOSED


def _is_row(lines: list[str], at: int, separator: str, width: int) -> bool:
    return at >= len(lines) or len(split_line(lines[at], separator)[0]) == width


def _joined(lines: list[str], at: int, separator: str, width: int) -> tuple[list[str], int] | None:
    """The row that line `at` begins and a later line ends, with the number of lines it spans."""
    text = lines[at]
    for extra in range(1, min(MAX_JOINED, len(lines) - at)):
        text += "\n" + lines[at + extra]
        if '"' in lines[at + extra]:
            fields, is_open = split_line(text, separator)
            if not is_open and len(fields) == width:
                return fields, extra + 1
    return None


def _null_if_empty(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return frame.with_columns(pl.when(pl.all() != "").then(pl.all()))


def _uneven(path: Path, data: bytes, separator: str, names: list[str], header: bool) -> DataError | None:
    """The first line with too many or too few fields, as an error."""
    import csv

    text = io.StringIO(data.decode("utf-8"), newline="")
    quoting = csv.QUOTE_MINIMAL if b'"' in data else csv.QUOTE_NONE
    reader = csv.reader(text, delimiter=separator, quoting=quoting)  # type: ignore[arg-type]
    cut = not data.endswith(b"\n")
    lines = data.count(b"\n") + cut
    before = csv.field_size_limit(1 << 30)
    try:
        for i, row in enumerate(reader):
            if row and len(row) != len(names) and (i or not header):
                last = reader.line_num >= lines and len(row) < len(names)
                problem = _count(len(row), len(names))
                return bad_line(path, reader.line_num, problem, separator.join(row), cut and last)
    finally:
        csv.field_size_limit(before)
    return None


def _count(found: int, wanted: int) -> str:
    return f"{found} field{'s' * (found != 1)} where {wanted} are expected"


def check_delimiter(delimiter: str) -> str:
    """The delimiter itself ("tab" and "\\t" are the tab); ConfigError for one that cannot be."""
    value = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if not value.isascii() or not value or '"' in value or "\n" in value:
        raise ConfigError(f"delimiter {delimiter!r} cannot be; valid: ',', ';', '|', '::', tab and others")
    return value
