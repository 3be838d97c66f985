"""Training sequences of one epoch: what is cut out of the packed histories.

ByteDance's HLLM cuts long histories into pieces that never overlap and are the same in every
epoch; its lengths are 50 inputs for Books and 10 for PixelRec (`max_len` of these sources).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hllm.data.dataset import Histories


@dataclass(frozen=True)
class Windows:
    """Contiguous pieces of a packed array: `flat[starts[i] : starts[i] + lengths[i]]` of `users[i]`."""

    users: np.ndarray  # int64 (W,)
    starts: np.ndarray  # int64 (W,)
    lengths: np.ndarray  # int64 (W,)

    def __len__(self) -> int:
        return len(self.users)

    def take(self, index: np.ndarray | slice) -> Windows:
        return Windows(self.users[index], self.starts[index], self.lengths[index])


def joined(parts: list[Windows]) -> Windows:
    """All windows of `parts`, one part after the other."""
    return Windows(
        np.concatenate([part.users for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


def pieces(histories: Histories, max_len: int | None, seed: int, epoch: int) -> Windows:
    """All pieces of `max_len` + 1 events that `cut_from_end` makes, shuffled by (seed, epoch).

    The counterpart of `random_windows`: a user with a long history has several pieces in an
    epoch, so `users` may repeat, and the oldest events that fill no piece are never trained on.
    The first event of a piece is input only; a piece of one event predicts nothing and is left
    out. `max_len` None: each history is one piece. Raises ValueError for a `max_len` below 1.
    """
    offsets = np.asarray(histories.offsets, dtype=np.int64)
    length = max(int(np.diff(offsets).max(initial=1)), 1) if max_len is None else max_len
    starts, ends = cut_from_end(offsets, length)
    chosen = np.random.default_rng([seed, epoch]).permutation(np.flatnonzero(ends - starts >= 2))
    starts, lengths = starts[chosen], (ends - starts)[chosen]
    rows = np.searchsorted(offsets, starts, side="right") - 1
    return Windows(np.asarray(histories.users)[rows], starts, lengths)


def every_target(histories: Histories, max_len: int | None, seed: int, epoch: int) -> Windows:
    """Whole histories in windows of at most `max_len` + 1 events: every event but a user's first is a target once.

    A window begins with the event that ended the one before it. Where a history takes several, the
    first is of random length, so that the cuts fall elsewhere in every epoch. Shuffled by
    (seed, epoch); `users` may repeat. `max_len` None: each history is one window.
    """
    rng = np.random.default_rng([seed, epoch])
    offsets = np.asarray(histories.offsets, dtype=np.int64)
    n_targets = np.diff(offsets) - 1
    length = max(int(n_targets.max(initial=1)), 1) if max_len is None else max_len
    first = np.minimum(
        n_targets, np.where(n_targets > length, rng.integers(1, length + 1, len(n_targets)), length)
    )
    counts = np.where(n_targets > 0, 1 - (first - n_targets) // length, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.where(number > 0, first[owner] + (number - 1) * length, 0)
    sizes = np.where(number > 0, np.minimum(length, n_targets[owner] - starts), first[owner])
    order = rng.permutation(len(owner))
    rows = owner[order]
    return Windows(np.asarray(histories.users)[rows], offsets[rows] + starts[order], sizes[order] + 1)


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
