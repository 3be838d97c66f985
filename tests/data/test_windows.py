"""ByteDance's way of cutting, against the loop of its description."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.windows import cut_from_end


def by_hand(sizes: list[int], length: int) -> list[list[int]]:
    """Pieces of flat positions: short histories whole, long ones in full pieces that end at the end."""
    pieces, start = [], 0
    for size in sizes:
        events = list(range(start, start + size))
        start += size
        if size > length + 1:
            events = events[size % (length + 1) :]
            pieces += [events[i : i + length + 1] for i in range(0, len(events), length + 1)]
        elif events:
            pieces.append(events)
    return pieces


@given(st.lists(st.integers(0, 23), max_size=8), st.integers(1, 7))
def test_equal_to_the_loop(sizes: list[int], length: int) -> None:
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    starts, ends = cut_from_end(offsets, length)
    assert [list(range(a, b)) for a, b in zip(starts, ends, strict=True)] == by_hand(sizes, length)
    assert starts.dtype == ends.dtype == np.int64


def test_example() -> None:
    """8 events in pieces of 3: the oldest two are in none. 3 events: one piece, whole."""
    starts, ends = cut_from_end(np.array([0, 8, 11]), 2)
    assert starts.tolist() == [2, 5, 8]
    assert ends.tolist() == [5, 8, 11]


def test_length_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="length=0"):
        cut_from_end(np.array([0, 3]), 0)
