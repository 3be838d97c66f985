"""Later events in a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from hllm.data.dataset import Dataset
from hllm.data.extend import grown, read_events
from hllm.errors import DataError
from hllm.testing import world, world_tables


def events(*rows: tuple[Any, Any, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=["user_id", "item_id", "timestamp"], orient="row")


def history(data: Dataset, user: Any) -> list[tuple[Any, int, bool]]:
    """(item id, time, may be trained on) of a user's events."""
    row = data.row_of(user)
    at = range(int(data.offsets[row]), int(data.offsets[row + 1]))
    return [(data.item_ids[data.tokens[i] - 1], int(data.times[i]), bool(data.train_mask[i])) for i in at]


def held_out(data: Dataset) -> dict[str, list[tuple[Any, Any, int]]]:
    """(user, item, time) of each split's held-out events."""
    found = {}
    for name, positions in data.queries.items():
        users = np.searchsorted(data.offsets, positions, side="right") - 1
        found[name] = [
            (data.user_ids[u], data.item_ids[data.tokens[p] - 1], int(data.times[p]))
            for u, p in zip(users, positions, strict=True)
        ]
    return found


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(n_users=12, n_items=20)


@pytest.mark.parametrize("split", ["leave-one-out", "user-ratio", "temporal"])
def test_histories_grow_and_what_is_held_out_stays_so(split: str) -> None:
    data = world(n_users=30, n_items=20, split=split)
    later = int(data.times.max()) + 10
    first = int(data.times[data.offsets[5]])
    rows = [(user, 10 + user % 20, later + user) for user in data.user_ids]
    new = events(*rows, (999, 12, later), (999, 13, later - 5), (105, 17, first - 3))
    more = grown(data, read_events(data, new.sample(fraction=1, shuffle=True, seed=1)))
    assert (more.events, more.users, more.known, more.unknown_items) == (33, 1, 0, 0)
    assert held_out(more.data) == held_out(data)
    assert [item for item, _, _ in history(more.data, 999)] == [13, 12]
    assert history(more.data, 105)[0][:2] == (17, first - 3)
    for at in more.data.queries.values():
        assert not more.data.train_mask[at].any()
    targets = {(u, i) for rows in held_out(data).values() for u, i, _ in rows}
    never = {u for u in data.user_ids if split == "user-ratio" and not any(h[2] for h in history(data, u))}
    for user, item, time in rows:
        assert (item, time, (user, item) not in targets and user not in never) in history(more.data, user)
        old = history(data, user)
        assert [event for event in history(more.data, user) if event in old] == old
    assert more.data.fingerprint != data.fingerprint
    assert more.data.n_users == 31 and more.data.users["age"][-1] is None


def test_the_same_table_twice_changes_nothing(data: Dataset) -> None:
    later = int(data.times.max()) + 1
    new = read_events(data, events((100, 12, later), (100, 12, later), (888, 11, later)))
    once = grown(data, new)
    twice = grown(once.data, new)
    assert (once.events, twice.events, twice.known) == (3, 0, 3)
    assert twice.data is once.data
    again = grown(once.data, read_events(data, events((100, 12, later), (100, 12, later), (100, 12, later))))
    assert (again.events, again.known) == (1, 2)
    old = pl.DataFrame(world_tables(n_users=12, n_items=20)[0])
    assert grown(data, read_events(data, old)).events == 0


def test_it_is_saved_and_opened(data: Dataset, tmp_path: Any) -> None:
    more = grown(data, read_events(data, events((888, 11, int(data.times.max()) + 1)))).data
    more.copy_to(tmp_path / "data")
    found = Dataset.load(tmp_path / "data")
    found.verify()
    assert found.fingerprint == more.fingerprint and history(found, 888) == history(more, 888)


def test_items_nobody_knows_are_counted(data: Dataset) -> None:
    later = int(data.times.max())
    found = grown(data, read_events(data, events((888, 7777, later), (100, 12, later))))
    assert (found.events, found.users, found.unknown_items) == (1, 0, 1)
    assert 888 not in found.data.user_ids


def test_types_and_units(data: Dataset) -> None:
    text = events(("100", "12", "2040-05-06 07:08:09"))
    assert read_events(data, text).rows() == [(100, 12, 2_219_900_889)]
    stamp = pl.Series("timestamp", ["2040-05-06"]).str.to_datetime(time_unit="ms")
    days = read_events(data, events((100, 12, 0)).with_columns(timestamp=stamp))["timestamp"][0]
    assert days == 2_219_875_200
    with pytest.raises(DataError, match="look like times in ms, and the dataset's are in s"):
        read_events(data, events((100, 12, 2_220_246_489_000)))
    with pytest.raises(DataError, match="'u1' is not written as an integer"):
        read_events(data, events(("u1", "12", 1)))
    with pytest.raises(DataError, match="no column 'timestamp'"):
        read_events(data, events((100, 12, 1)).drop("timestamp"))
