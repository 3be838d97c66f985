"""Cutting long histories into training sequences as ByteDance's HLLM does."""

from __future__ import annotations

import numpy as np

# MAX_ITEM_LIST_LENGTH of ByteDance's scripts: inputs of one sequence. One event more is read,
# since each input's target is the event after it.
BYTEDANCE_LENGTHS = {"bytedance-books": 50, "amazon-books": 50, "pixel200k": 10, "pixel1m": 10, "pixel8m": 10}


def cut_from_end(offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut packed histories into pieces of `length` + 1 events, counted from each history's end.

    `offsets` int64 (U + 1,): history u is events offsets[u]..offsets[u + 1]. A history of at most
    `length` + 1 events is one piece, whole. A longer one gives as many pieces as fit, the last of
    them ending at its last event; the (at most `length`) oldest events that fill no piece are in
    none. Pieces do not overlap: the event that ends one is not the input that begins the next.
    Empty histories give no piece.

    Returns `starts`, `ends` int64 (P,): piece p is events starts[p]..ends[p], in history order.
    Raises ValueError for a `length` below 1. (HLLM, arXiv:2409.12740, its released code.)
    """
    if length < 1:
        raise ValueError(f"length={length}: must be at least 1")
    offsets = np.asarray(offsets, dtype=np.int64)
    sizes, piece = np.diff(offsets), length + 1
    counts = np.maximum(sizes // piece, sizes > 0)
    begin = np.where(sizes > piece, offsets[1:] - counts * piece, offsets[:-1])
    owner = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = begin[owner] + number * piece
    return starts, np.minimum(starts + piece, offsets[owner + 1])
