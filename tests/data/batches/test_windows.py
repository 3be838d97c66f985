"""ByteDance's way of cutting, against the loop of its description, and as batches for training."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.batches.training import TrainLoader, Windows, random_windows
from hllm.data.batches.windows import cut_from_end, pieces
from hllm.data.dataset import Dataset, Histories


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


def histories(sizes: list[int]) -> Histories:
    """Users 10, 20, ... with tokens 1, 2, ... counted through."""
    offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return Histories(tokens, tokens.astype(np.int64), offsets, 10 * np.arange(1, len(sizes) + 1))


def spans(windows: Windows) -> list[tuple[int, int, int]]:
    return list(zip(windows.users.tolist(), windows.starts.tolist(), windows.lengths.tolist(), strict=True))


@given(st.lists(st.integers(1, 23), max_size=8), st.integers(1, 7), st.integers(0, 3))
def test_pieces_are_those_of_the_loop(sizes: list[int], max_len: int, epoch: int) -> None:
    owner = np.repeat(10 * np.arange(1, len(sizes) + 1), sizes)
    expected = [(owner[p[0]], p[0], len(p)) for p in by_hand(sizes, max_len) if len(p) > 1]
    windows = pieces(histories(sizes), max_len, seed=3, epoch=epoch)
    assert sorted(spans(windows)) == sorted(expected)
    assert windows.users.dtype == windows.starts.dtype == windows.lengths.dtype == np.int64


def test_the_order_comes_from_seed_and_epoch() -> None:
    data = histories([30] * 10)
    orders = [spans(pieces(data, 5, seed, epoch)) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(orders[0]))}  # the same cuts each time


def test_without_a_limit_each_history_is_one_piece() -> None:
    assert sorted(spans(pieces(histories([3, 1, 40]), None, 0, 0))) == [(10, 0, 3), (30, 4, 40)]
    assert len(pieces(histories([]), None, 0, 0)) == 0


def test_it_stands_in_for_random_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's batches from pieces: every target of a piece once, inputs one step behind."""
    data = histories([8, 3, 1])
    monkeypatch.setattr("hllm.data.batches.training.random_windows", pieces)
    batches = list(TrainLoader(data, max_len=2, batch_tokens=4, seed=0).epoch(0))
    pairs = [p for b in batches for p in zip(b.tokens.tolist(), b.targets.tolist(), strict=True)]
    assert sorted(pairs) == [(3, 4), (4, 5), (6, 7), (7, 8), (9, 10), (10, 11)]
    assert inspect.signature(random_windows) == inspect.signature(pieces)


def test_training_sequences_as_bytedance_builds_them() -> None:
    """From raw events: by time, without each user's last two, long ones in pieces from the end."""
    rng = np.random.default_rng(0)
    sizes = [3, 5, 14, 23, 4, 9]
    rows = [(user, int(rng.integers(50)), 1000 * user + t) for user, n in enumerate(sizes) for t in range(n)]
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    columns = dict(zip(("user_id", "item_id", "timestamp"), zip(*shuffled, strict=True), strict=True))
    polars = pytest.importorskip("polars")
    data = Dataset.from_tables(polars.DataFrame(columns), time_unit="s")

    expected, piece = [], 4 + 1
    for user, _ in enumerate(sizes):
        items = [item for u, item, _ in rows if u == user][:-2]
        if len(items) > piece:
            items = items[len(items) % piece :]
        expected += [items[i : i + piece] for i in range(0, len(items), piece)]

    train = data.train_histories()
    found = [
        [data.item_ids[t - 1] for t in train.tokens[start : start + length]]
        for _, start, length in spans(pieces(train, 4, 0, 0))
    ]
    assert sorted(found) == sorted(sequence for sequence in expected if len(sequence) > 1)
