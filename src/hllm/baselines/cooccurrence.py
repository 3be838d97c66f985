"""How many users have both of two items in their training history, in blocks of items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hllm.baselines.lookup import distinct_pairs

if TYPE_CHECKING:
    from hllm.data.dataset import Histories

BLOCK_COUNTS = 1 << 22  # counts held at once
BLOCK_PAIRS = 1 << 23  # pairs of events counted at once


def cooccurrences(histories: Histories, n: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first, counts int64 (b, n)): row i is the item token first + i, column j the token j, 0 to n - 1.

    A history counts once for a pair of items, and an item goes with itself in all of its histories. Costs the sum
    of the squared lengths of histories; n * n numbers are never held.
    """
    users, items = distinct_pairs(histories, n)
    starts = np.searchsorted(users, np.arange(len(histories) + 1))
    by_item = np.argsort(items, kind="stable")
    bounds = np.searchsorted(items[by_item], np.arange(n + 1))
    size = max(1, BLOCK_COUNTS // n)
    for first in range(0, n, size):
        last = min(first + size, n)
        events = by_item[bounds[first] : bounds[last]]  # of the block's items
        counts = np.zeros((last - first) * n, dtype=np.int64)
        for part in _parts((starts[1:] - starts[:-1])[users[events]]):
            owners = users[events[part]]
            lengths = starts[owners + 1] - starts[owners]
            rows = np.repeat(items[events[part]] - first, lengths)
            before = np.cumsum(lengths) - lengths
            others = items[np.arange(lengths.sum()) + np.repeat(starts[owners] - before, lengths)]
            counts += np.bincount(rows * n + others, minlength=len(counts))
        yield first, counts.reshape(last - first, n)


def _parts(lengths: np.ndarray) -> Iterator[slice]:
    """Cut neighbours into slices of about BLOCK_PAIRS pairs, or one event."""
    ends, first = np.cumsum(lengths), 0
    while first < len(lengths):
        before = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, before + BLOCK_PAIRS, side="right")), first + 1)
        yield slice(first, last)
        first = last
