"""A dataset split again is the dataset that would have been prepared with that split."""

from __future__ import annotations

import numpy as np
import polars as pl

from hllm.data.dataset import Dataset
from hllm.data.resplit import resplit


def frame() -> pl.DataFrame:
    """200 events of 15 users over 12 items in no order."""
    random = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "user_id": random.integers(0, 15, 200),
            "item_id": random.integers(0, 12, 200),
            "timestamp": 978_300_000 + random.permutation(200) * 60,
        }
    )


def test_resplit_is_the_datasets_own_split():
    events = frame()
    data = Dataset.from_tables(events, name="x", time_unit="s")
    wanted = Dataset.from_tables(events, name="x", time_unit="s", split="user-ratio", seed=3, targets="all")
    found = resplit(data, "user-ratio", None, 3)
    assert np.array_equal(found.train_mask, wanted.train_mask)
    assert all(np.array_equal(found.queries[name], wanted.queries[name]) for name in wanted.queries)
    assert found.meta["split"] == wanted.meta["split"] and found.meta["targets"] == wanted.meta["targets"]
    back = resplit(found, "leave-one-out", None, 3)
    assert np.array_equal(back.train_mask, data.train_mask)
