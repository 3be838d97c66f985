"""A trained recommender with text, and its world."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hllm.data.dataset import Dataset
from hllm.pipeline import Recommender
from hllm.testing import world_tables


@pytest.fixture(scope="session")
def rec() -> Recommender:
    """Trained for one epoch on ids alone; items have a brand, and when they may be sold. Tests only read it."""
    interactions, items, users = world_tables(n_users=24, n_items=30, length=10)
    items = items.with_columns(brand=pl.Series([f"b{i % 4}" if i % 7 else None for i in range(len(items))]))
    data = Dataset.from_tables(interactions, items, users, name="world", time_unit="s")
    settings = {"d_model": 16, "n_layers": 1, "n_heads": 2, "epochs": 1, "max_len": 12}
    return Recommender.from_preset("sasrec", **settings).fit(data, device="cpu", progress=False)


@pytest.fixture(scope="session")
def seen(rec: Recommender) -> dict[int, list[tuple[int, int]]]:
    """(item id, time) of every user's history, in order."""
    data = rec.dataset
    assert data is not None
    offsets = np.asarray(data.offsets)
    return {
        user: [
            (data.item_ids[data.tokens[i] - 1], int(data.times[i])) for i in range(*offsets[row : row + 2])
        ]
        for row, user in enumerate(data.user_ids)
    }
