"""What training and evaluation are fed: windows, token budgets, queries."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.batches.queries import (
    eval_queries,
    history_queries,
    last_queries,
    query_batch,
    query_batches,
)
from hllm.data.batches.training import TrainLoader, budget_slices, random_windows
from hllm.data.dataset import Dataset, Histories
from hllm.testing import world


def histories(*sizes: int) -> Histories:
    """Users 10, 11, ... whose tokens count up through the whole array, a minute apart."""
    total = sum(sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    tokens = np.arange(1, total + 1, dtype=np.int32)
    return Histories(tokens, np.arange(total) * 60, offsets, np.arange(len(sizes)) + 10)


def sequences(loader: TrainLoader, epoch: int, skip: int = 0) -> list[tuple[int, list[int], list[int]]]:
    """(user, inputs, targets) of every window of an epoch."""
    found = []
    for batch in loader.epoch(epoch, skip):
        bounds = batch.offsets.tolist()
        for i, user in enumerate(batch.users.tolist()):
            part = slice(bounds[i], bounds[i + 1])
            found.append((user, batch.tokens[part].tolist(), batch.targets[part].tolist()))
    return found


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 12), st.integers(0, 3))
def test_one_contiguous_window_per_user_and_epoch(sizes: list[int], max_len: int, epoch: int) -> None:
    data = histories(*sizes)
    loader = TrainLoader(data, max_len, 40, seed=1)
    found = sequences(loader, epoch)
    assert sorted(user for user, _, _ in found) == [10 + i for i, size in enumerate(sizes) if size >= 2]
    for user, inputs, targets in found:
        first, last = data.offsets[user - 10], data.offsets[user - 9]
        assert len(inputs) == len(targets) == min(max_len, sizes[user - 10] - 1)
        assert targets == [token + 1 for token in inputs]  # every position a target: the event after it
        assert inputs == list(range(inputs[0], inputs[0] + len(inputs)))
        assert first < inputs[0] and targets[-1] <= last  # token t is event t - 1


def test_a_window_starts_anywhere_equally_often() -> None:
    starts = [int(random_windows(histories(12), 4, 0, epoch).starts[0]) for epoch in range(4000)]
    counts = np.bincount(starts)
    assert len(counts) == 8  # 12 - (4 + 1) + 1
    assert counts.min() > 400 and counts.max() < 600


def test_whole_histories_without_a_limit() -> None:
    windows = random_windows(histories(12, 1, 5), None, 0, 0)
    assert sorted(windows.lengths.tolist()) == [5, 12]
    assert TrainLoader(histories(12, 1, 5), None, 10, 0).longest_window() == 11
    assert TrainLoader(histories(12, 1, 5), 4, 10, 0).longest_window() == 4
    assert TrainLoader(histories(3, 1), 4, 10, 0).longest_window() == 2


def test_order_comes_from_seed_and_epoch_alone() -> None:
    data = histories(*range(2, 30))

    def epoch(seed: int, number: int) -> list[tuple[int, list[int], list[int]]]:
        return sequences(TrainLoader(data, 6, 20, seed), number)

    assert epoch(0, 3) == epoch(0, 3)
    assert epoch(0, 3) != epoch(0, 4)
    assert epoch(0, 3) != epoch(1, 3)


@pytest.mark.parametrize("windows", ["random", "pieces", "every"])
def test_going_on_by_skipping(windows: str) -> None:
    loader = TrainLoader(histories(*range(2, 30)), 6, 20, 0, windows=windows)
    batches = list(loader.epoch(2))
    assert len(batches) == len(loader.plan(2)) > 5
    for skip in (0, 1, 4, len(batches)):
        rest = list(loader.epoch(2, skip))
        assert len(rest) == len(batches) - skip
        for mine, theirs in zip(rest, batches[skip:], strict=True):
            for name in ("users", "tokens", "times", "targets", "offsets"):
                assert torch.equal(getattr(mine, name), getattr(theirs, name))


def test_batches_keep_to_the_token_budget() -> None:
    loader = TrainLoader(histories(*([9] * 10), 200), None, 25, 0)
    sizes = [batch.n_tokens for batch in loader.epoch(0)]
    assert sum(sizes) == 8 * 10 + 199
    assert sorted(sizes)[-1] == 199  # alone: a history longer than the budget is not cut
    assert all(size <= 25 for size in sorted(sizes)[:-1])


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 20))
def test_budget_slices_cover_everything_once(lengths: list[int], budget: int) -> None:
    slices = budget_slices(np.array(lengths, dtype=np.int64), budget)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(len(lengths)))
    for number, part in enumerate(slices):
        size = sum(lengths[part])
        assert size <= budget or part.stop - part.start == 1
        if number + 1 < len(slices):  # as full as it can be
            assert size + lengths[part.stop] > budget


def test_a_batch_has_the_contracts_types() -> None:
    (batch,) = TrainLoader(histories(4, 3), 8, 100, 0).epoch(0)
    assert batch.users.dtype == batch.tokens.dtype == batch.times.dtype == batch.targets.dtype == torch.int64
    assert batch.offsets.dtype == torch.int32
    assert batch.lengths.tolist() == batch.offsets.diff().tolist()
    assert (batch.times // 60 + 1).tolist() == batch.tokens.tolist()


def test_training_never_sees_held_out_events() -> None:
    data = world(n_users=25)
    loader = TrainLoader(data.train_histories(), None, 10_000, 0)
    found = {user: [*inputs, targets[-1]] for user, inputs, targets in sequences(loader, 0)}
    for row in range(data.n_users):
        own = data.tokens[data.offsets[row] : data.offsets[row + 1] - 2].tolist()
        assert found.get(row, own[:1]) == own


# ---------------------------------------------------------------------- queries


@pytest.fixture(scope="module")
def millis() -> Dataset:
    rows = [("a", "x", 1000), ("a", "y", 2999), ("a", "x", 3000), ("a", "z", 4001), ("b", "z", 1)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Dataset.from_tables(frame, time_unit="ms")


def test_a_query_is_everything_before_the_held_out_event(millis: Dataset) -> None:
    for split, history, target in (("validation", [1, 2], 1), ("test", [1, 2, 1], 3)):
        queries = eval_queries(millis, split)
        assert len(queries) == 1
        assert queries.users.tolist() == [0] and queries.targets.tolist() == [target]
        assert queries.tokens[queries.starts[0] : queries.ends[0]].tolist() == history
        rows, tokens = queries.history_pairs(slice(0, 1))
        assert (rows.tolist(), tokens.tolist()) == ([0] * len(history), history)
    assert eval_queries(millis, "validation").repeated().tolist() == [True]
    assert eval_queries(millis, "test").repeated().tolist() == [False]


def test_times_are_whole_seconds(millis: Dataset) -> None:
    ((part, batch),) = query_batches(last_queries(millis, np.array([0, 1])), None)
    assert part == slice(0, 2)
    assert batch.times.tolist() == [1, 2, 3, 4, 0]
    assert batch.tokens.tolist() == [1, 2, 1, 3, 3]
    assert not batch.targets.any()


def test_the_last_events_are_what_a_model_sees(millis: Dataset) -> None:
    queries = last_queries(millis, np.array([1, 0]))
    ((_, batch),) = query_batches(queries, 2)
    assert batch.users.tolist() == [1, 0]
    assert batch.tokens.tolist() == [3, 1, 3]
    assert batch.offsets.tolist() == [0, 1, 3]


def test_blocks_of_users_and_slices(millis: Dataset) -> None:
    queries = history_queries([[1], [2, 3], [], [3]])
    blocks = list(query_batches(queries, None, batch_users=3))
    assert [part for part, _ in blocks] == [slice(0, 3), slice(3, 4)]
    assert blocks[0][1].offsets.tolist() == [0, 1, 3, 3]
    assert blocks[1][1].tokens.tolist() == [3]
    assert queries.users.tolist() == [-1] * 4
    rows, tokens = queries.history_pairs(slice(1, 4))
    assert (rows.tolist(), tokens.tolist()) == ([0, 0, 2], [2, 3, 3])
    timed = history_queries([[1], [2, 3]], [[5], [6, 7]])
    ((_, batch),) = query_batches(timed, None)
    assert batch.times.tolist() == [5, 6, 7]


def test_histories_with_and_without_times_are_never_one_batch() -> None:
    queries = history_queries([[1], [2, 3], [], [3], [4]], [[5], [6, 7], None, None, [8]])
    batches = [(part, batch.clock, batch.times.tolist()) for part, batch in query_batches(queries, None)]
    assert batches == [
        (slice(0, 2), True, [5, 6, 7]), (slice(2, 4), False, [0]), (slice(4, 5), True, [8])
    ]  # fmt: skip
    with pytest.raises(ValueError, match="with times and without"):
        query_batch(queries, slice(0, 4), None)
    assert next(query_batches(history_queries([[1]]), None))[1].clock is False
    kept = queries.take(np.array([4, 0]))
    assert [b.times.tolist() for _, b in query_batches(kept, None)] == [[8, 5]]
