"""Files too large for memory, as blocks of lines: plain or gzip, one pass.

Lines end at a line feed only (a description may hold U+2028 or a form feed); a carriage return
before it goes, and so does a byte-order mark. Each block comes with the number of its first
line, so that an error can say where it is.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from hllm.data.reading.textfiles import bad_line, open_binary, refuse_binary
from hllm.errors import DataError

T = TypeVar("T")
BLOCK = 1 << 22  # bytes read at a time


def read_blocks(path: Path, size: int = BLOCK) -> Iterator[bytes]:
    """Yield the file's bytes, decompressed, in blocks of whole lines, without the byte-order mark.

    Only the last block may lack its final line feed. Raises DataError for an empty or binary
    file and where a gzip file is damaged or cut short.
    """
    rest, first = b"", True
    with open_binary(path) as file:
        while data := file.read(size):
            if first:
                refuse_binary(path, data[:512])
                data, first = data.removeprefix(codecs.BOM_UTF8), False
            cut = data.rfind(b"\n") + 1
            if cut:
                yield rest + data[:cut]
                rest = data[cut:]
            else:
                rest += data
    if first:
        raise DataError(f"{path} is empty")
    if rest:
        yield rest


def read_line_blocks(path: Path, size: int = BLOCK) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (number of the first line, lines without their ends), counting lines from 1."""
    number = 1
    for block in read_blocks(path, size):
        lines = (block.replace(b"\r\n", b"\n") if b"\r\n" in block else block).split(b"\n")
        if not lines[-1]:
            lines.pop()
        yield number, lines
        number += len(lines)


def numbered_lines(path: Path, size: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line without its end) of every line that is not blank."""
    for number, lines in read_line_blocks(path, size):
        yield from ((i, raw) for i, raw in enumerate(lines, start=number) if raw.strip())


def numbered_rows(
    path: Path, width: int, split: Callable[[str], list[str]], wanted: str, header: bool = True
) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, fields) of every row below the header, by the slow way that names a bad one.

    This is where every reader of delimited text goes once its fast parser is in doubt. `wanted` says what
    a row should be. DataError for the first line that does not split into `width` fields.
    """
    for number, raw in numbered_lines(path):
        if header and number == 1:
            continue
        text = decode(raw)
        fields = split(text)
        if len(fields) != width:
            raise bad_line(
                path, number, f"{len(fields)} field{'s' * (len(fields) != 1)} where {wanted}", text
            )
        yield number, fields


def numbered_records(path: Path, parse: Callable[[bytes], T], what: str = "{}") -> Iterator[tuple[int, T]]:
    """Yield (number, record) of files with one record a line. DataError for the first that is none.

    `parse` raises ValueError for what it cannot read; `what` is the message around that.
    """
    for number, raw in numbered_lines(path):
        try:
            yield number, parse(raw)
        except ValueError as err:
            raise bad_line(path, number, what.format(err), decode(raw)) from err


def decode(raw: bytes) -> str:
    """UTF-8, or Windows-1252 where a text is not valid UTF-8: old catalogues mix both (case D2)."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        pass
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
