"""Files of others, opened robustly: encodings, gzip, byte-order marks, and clear refusals.

The encoding is always explicit, so the result does not depend on the locale (case D2), and
every refusal is a DataError of one line that names the file, the place and what to do.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from hllm.errors import ConfigError, DataError, nearest

CHUNK = 1 << 24
MAX_COLUMNS = 10_000
# Text shrinks to a tenth; a file that grows beyond these is made to fill memory or disk.
MAX_GROWTH, GROWTH_FROM = 200, 1 << 28
GZIP = b"\x1f\x8b"
MAGIC = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook"),
    (b"PAR1", "a Parquet file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"%PDF", "a PDF file"),
    (b"\x89PNG", "a picture"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"ARROW1", "an Arrow file"),
)
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextmanager
def open_binary(path: Path | str) -> Iterator[IO[bytes]]:
    """The file's bytes as a stream, decompressed where they are gzip, whatever the name.

    Raises DataError for a missing, unreadable or empty file, and inside the block for a gzip
    stream that is damaged or cut short.
    """
    path = Path(path)
    try:
        with open(path, "rb") as raw:
            start = raw.peek(2)[:2]
            if not start:
                raise DataError(f"{path} is empty")
            if start != GZIP:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as unzipped:
                yield cast(IO[bytes], _Limited(path, unzipped, path.stat().st_size))
    except EOFError as err:
        raise DataError(f"{path} is cut short: its gzip stream does not end; download it again") from err
    except (gzip.BadGzipFile, zlib.error) as err:
        raise DataError(f"{path} is a damaged gzip file ({err}); download it again") from err
    except IsADirectoryError as err:
        raise DataError(f"{path} is a folder, not a file") from err
    except FileNotFoundError as err:
        raise DataError(_not_found(path)) from err
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror or err}") from err


class _Limited:
    """A gzip stream that ends in a DataError where it grows out of all proportion."""

    def __init__(self, path: Path, stream: gzip.GzipFile, size: int) -> None:
        self.path, self.stream, self.limit = path, stream, max(GROWTH_FROM, MAX_GROWTH * size)
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        if size >= 0:
            return self._counted(self.stream.read(size))
        return b"".join(iter(lambda: self._counted(self.stream.read(CHUNK)), b""))

    def _counted(self, data: bytes) -> bytes:
        self.count += len(data)
        if self.count > self.limit:
            raise DataError(
                f"{self.path} holds more than {self.limit / 1e6:,.0f} MB, over {MAX_GROWTH} times its own size, the "
                "limit for gzip files; if that is meant, unpack it with gunzip first"
            )
        return data


def read_utf8(path: Path | str, encoding: str | None = None, otherwise: str | None = None) -> bytes:
    """The whole text file as UTF-8 bytes without a byte-order mark, line ends as `\\n`.

    `encoding` None reads UTF-8 (or what a byte-order mark says), and where that is impossible
    the encoding `otherwise`: valid UTF-8 with accents is practically never Latin-1 by chance.
    Raises DataError for an empty or binary file, or with the offset of the first bad byte.
    """
    path = Path(path)
    with open_binary(path) as file:
        data = file.read()
    data = _as_utf8(path, data, check_encoding(encoding), otherwise)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    if not data.strip():
        raise DataError(f"{path} is empty")
    return data


def split_lines(data: bytes) -> tuple[list[str], bool]:
    """Lines of UTF-8 `data` without their ends, and whether the last one may be cut: it has no end."""
    return data.decode("utf-8").rstrip("\n").split("\n"), not data.endswith(b"\n")


def check_encoding(encoding: str | None) -> str | None:
    """The codec's own name; ConfigError for one that Python does not know."""
    if encoding is None:
        return None
    try:
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as err:  # ValueError: NUL, or half a character
        raise ConfigError(
            f"unknown encoding {encoding!r}; valid: utf-8, latin-1, cp1252, utf-16, "
            "and what else Python knows"
        ) from err


def refuse_binary(path: Path, start: bytes) -> None:
    """DataError if `start`, the file's first bytes, is that of a known binary format or holds NUL."""
    for magic, what in MAGIC:
        if start.startswith(magic):
            raise DataError(f"{path} is {what}, not a text file")
    at = start.find(b"\0")
    if at >= 0:
        raise DataError(f"{path} is not a text file: byte 0 at offset {at:,}")


def _as_utf8(path: Path, data: bytes, encoding: str | None, otherwise: str | None) -> bytes:
    if encoding is None:
        for mark, name in BYTE_ORDER_MARKS:
            if data.startswith(mark):
                data, encoding, otherwise = data.removeprefix(mark), _without_mark(mark, name), None
                break
    else:
        data = data.removeprefix(codecs.BOM_UTF8) if encoding == "utf-8" else data
    if encoding is None or not encoding.startswith(("utf-16", "utf-32")):
        refuse_binary(path, data)
        if data.isascii():
            return data
    first = encoding or "utf-8"
    bad = _first_bad(data, first)
    if bad is not None and otherwise is not None and encoding is None:
        first, bad = otherwise, _first_bad(data, otherwise)
    if bad is not None:
        raise DataError(_encoding_message(path, data, bad, 0, first))
    return data if first == "utf-8" else data.decode(first).encode("utf-8")


def _without_mark(mark: bytes, name: str) -> str:
    if name == "utf-8":
        return name
    return f"{name}-{'le' if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE) else 'be'}"


def _first_bad(data: bytes, encoding: str) -> UnicodeDecodeError | None:
    """The first thing that does not decode, checked in pieces to spare memory."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for start in range(0, max(len(data), 1), CHUNK):
            decoder.decode(data[start : start + CHUNK], final=start + CHUNK >= len(data))
    except UnicodeDecodeError:
        try:
            data.decode(encoding)
        except UnicodeDecodeError as err:  # positions count from the start of the file
            return err
    return None


def _encoding_message(path: Path, data: bytes, err: UnicodeDecodeError, offset: int, name: str) -> str:
    hint = "--encoding latin-1" if name == "utf-8" else "--encoding utf-8"
    around = data[max(0, err.start - 20) : err.start + 20].decode("ascii", "backslashreplace")
    return (
        f"{path} is not {name}: byte 0x{data[err.start]:02x} at offset {offset + err.start:,} "
        f"(near {' '.join(around.split())!r}); if it is in another encoding pass {hint}"
    )


def _not_found(path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"{path} not found{nearest(path.name, siblings)}"


def bad_line(path: Path, number: int, problem: str, line: str, cut: bool = False) -> DataError:
    """A DataError for line `number` (from 1) of a text file; `cut`: the file may end too early."""
    advice = "; the file seems cut short, get it again" if cut else ""
    return DataError(f"{path} line {number:,}: {problem}: {_cut(line)!r}{advice}")


def check_header(path: Path, names: Sequence[str]) -> None:
    """DataError for a header with a name twice, or with too many columns."""
    check_width(path, names)
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"{path} has the column {_cut(twice[0])!r} more than once; found: {_listed(names)}")


def check_width(path: Path | str, names: Sequence[str]) -> None:
    """DataError for more columns than anything here has use for."""
    if len(names) > MAX_COLUMNS:
        raise DataError(
            f"{path} has {len(names):,} columns, and the limit is {MAX_COLUMNS:,}; keep those that are needed"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(_cut, names[:20])) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."


def check_columns(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """DataError naming the `wanted` columns that `found`, a header, lacks."""
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(map(repr, missing))}{nearest(missing[0], found)}; "
            f"found: {_listed(found)}"
        )
