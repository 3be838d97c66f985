"""Pickles of arrays larger than memory, written piece by piece.

Opcodes are emitted by hand in the form that every numpy reads: `_reconstruct`, then a state
whose last part is the array's bytes, given their length beforehand and then streamed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from hllm.artifacts import atomic
from hllm.errors import DataError

WINDOW_COLUMNS = ("seq_tokens", "seq_positions", "seq_time_diffs", "targets")
PIECE = 4096  # windows held at once
PROTO4, EMPTY_DICT, EMPTY_LIST, MARK, SETITEM, STOP = b"\x80\x04", b"}", b"]", b"(", b"s", b"."
OPEN_LIST = b"]q\x00"  # an empty list, remembered under number 0
REDUCE, TUPLE, BUILD, NEWFALSE, BINBYTES8 = b"R", b"t", b"b", b"\x89", b"\x8e"


class WindowSource(Protocol):
    """Windows that can be had in pieces; see `hllm.compat.rechub.windows.StoredWindows`."""

    @property
    def width(self) -> int | None:
        """Length of every window, or None where they are ragged lists."""

    def __len__(self) -> int: ...

    def dtype(self, column: str) -> np.dtype[Any]:
        """Type in which `column` is stored."""

    def column(self, column: str, first: int, last: int) -> Any:
        """Rows [first, last) of a column: an array, or a list of lists where windows are ragged."""


def write_object(path: Path, value: Any) -> None:
    """Write a small object (protocol 4, which every Python since 3.4 reads)."""
    with atomic(path) as temporary:
        temporary.write_bytes(pickle.dumps(value, protocol=4))


def write_columns(path: Path, sources: Sequence[WindowSource], single: str | None) -> None:
    """Write all columns of `sources`, laid end to end, as a dict; or the column `single` alone."""
    with atomic(path) as temporary, open(temporary, "wb") as out:
        out.write(PROTO4)
        if single is not None:
            _write_column(out, sources, single)
        else:
            out.write(EMPTY_DICT)
            for name in WINDOW_COLUMNS:
                out.write(_opcodes(name))
                _write_column(out, sources, name)
                out.write(SETITEM)
        out.write(STOP)


def _write_column(out: IO[bytes], sources: Sequence[WindowSource], name: str) -> None:
    widths = {source.width for source in sources}
    if widths == {None}:
        _write_list(out, _pieces(sources, name))
        return
    if len(widths) != 1:
        raise DataError(f"windows of different widths {sorted(map(str, widths))} cannot share a file")
    n = sum(len(source) for source in sources)
    shape = (n,) if name == "targets" else (n, *widths)
    _write_array(out, shape, sources[0].dtype(name), _pieces(sources, name))


def _pieces(sources: Sequence[WindowSource], name: str) -> Iterator[Any]:
    for source in sources:
        for first in range(0, len(source), PIECE):
            yield source.column(name, first, min(first + PIECE, len(source)))


def _write_array(
    out: IO[bytes], shape: tuple[Any, ...], dtype: np.dtype[Any], pieces: Iterator[np.ndarray]
) -> None:
    # numpy 2 still answers to the module name of numpy 1, and numpy 1 knows no other.
    out.write(b"cnumpy.core.multiarray\n_reconstruct\n")
    out.write(_opcodes((np.ndarray, (0,), b"b")) + REDUCE)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    out.write(MARK + _opcodes(1) + _opcodes(shape) + _opcodes(dtype) + NEWFALSE)
    out.write(BINBYTES8 + size.to_bytes(8, "little"))
    for piece in pieces:
        out.write(np.ascontiguousarray(piece, dtype=dtype).data)
    out.write(TUPLE + BUILD)


def _write_list(out: IO[bytes], pieces: Iterator[list[Any]]) -> None:
    out.write(EMPTY_LIST)
    for piece in pieces:
        # A list's own pickle is "empty list", then its elements and how to append them: the
        # second part appends to the list that is open here.
        out.write(_opcodes(piece).removeprefix(OPEN_LIST))


def _opcodes(value: Any) -> bytes:
    """The opcodes that push `value`, free to follow others in one pickle.

    Protocol 3 numbers its memo explicitly, from 0 in every call, and refers to its own numbers only.
    """
    return pickle.dumps(value, protocol=3)[2:-1]
