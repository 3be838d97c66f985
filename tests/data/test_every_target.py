"""Windows that make every event but a user's first a target exactly once, and several passes an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.batches.training import TrainLoader
from hllm.data.batches.windows import every_target
from hllm.data.dataset import Histories
from hllm.testing import world


def histories_of(sizes: list[int]) -> Histories:
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    n = int(offsets[-1])
    return Histories(np.arange(n, dtype=np.int32) + 1, np.arange(n), offsets, np.arange(len(sizes)) + 100)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(0, 3),
)
def test_each_target_once_in_windows_of_one_user(sizes: list[int], max_len: int | None, epoch: int) -> None:
    histories = histories_of(sizes)
    windows = every_target(histories, max_len, 7, epoch)
    targets = [
        np.arange(first + 1, first + n) for first, n in zip(windows.starts, windows.lengths, strict=True)
    ]
    found = np.sort(np.concatenate(targets)) if targets else np.array([], dtype=np.int64)
    firsts = {int(o) for o, n in zip(histories.offsets, sizes, strict=False) if n}
    assert found.tolist() == [i for i in range(sum(sizes)) if i not in firsts]
    assert max_len is None or (windows.lengths <= max_len + 1).all()
    owner = np.searchsorted(histories.offsets, windows.starts, side="right") - 1
    assert (
        owner == np.searchsorted(histories.offsets, windows.starts + windows.lengths - 1, side="right") - 1
    ).all()
    assert (windows.users == owner + 100).all()


def test_cuts_fall_elsewhere_in_every_epoch_and_repeat_by_seed() -> None:
    histories = histories_of([60] * 5)
    first, again, second = (every_target(histories, 8, 0, epoch) for epoch in (0, 0, 1))
    assert first.starts.tolist() == again.starts.tolist()
    assert sorted(first.starts) != sorted(second.starts)


@pytest.mark.parametrize("passes", [1, 3])
def test_an_epoch_of_several_passes_has_every_target_as_often(passes: int) -> None:
    histories = world().train_histories()
    loader = TrainLoader(histories, 4, 50, 0, windows="every", passes=passes)
    n = sum(int((batch.targets > 0).sum()) for batch in loader.epoch(0))
    assert n == passes * int(np.maximum(np.diff(histories.offsets) - 1, 0).sum())
    starts = [tuple(loader.plan(epoch).windows.starts) for epoch in (0, 1)]
    assert starts[0] != starts[1]
