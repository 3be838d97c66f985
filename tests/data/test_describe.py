"""Statistics against plain loops, and the printed table."""

from io import StringIO

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hllm.data.dataset import Dataset
from hllm.data.describe import describe, render
from hllm.data.tables.events import duplicate_events, owners, repeated_events, tied_events


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=6).map(
            lambda h: sorted(h, key=lambda e: e[1])
        ),
        max_size=6,
    )
)
def test_event_facts_equal_loops(histories):
    flat = [event for h in histories for event in h]
    offsets = np.cumsum([0, *(len(h) for h in histories)], dtype=np.int64)
    tokens = np.array([e[0] for e in flat], dtype=np.int32)
    times = np.array([e[1] for e in flat], dtype=np.int64)
    assert owners(offsets).tolist() == [u for u, h in enumerate(histories) for _ in h]
    tied = [sum(t == time for _, t in h) > 1 for h in histories for _, time in h]
    assert tied_events(times, offsets).tolist() == tied
    repeated = [item in [e[0] for e in h[:i]] for h in histories for i, (item, _) in enumerate(h)]
    assert repeated_events(tokens, offsets).tolist() == repeated
    assert duplicate_events(tokens, times, offsets) == sum(len(h) - len(set(h)) for h in histories)


@pytest.fixture
def stats():
    events = pl.DataFrame(
        {
            "user_id": ["a"] * 4 + ["b"] * 3 + ["c"],
            "item_id": [1, 2, 1, 2, 1, 2, 3, 3],
            "timestamp": [0, 86_400, 172_800, 172_800, 86_400, 90_000, 90_000, 43_200],
        }
    )
    items = pl.DataFrame({"item_id": [1, 2, 3, 4], "title": ["One", None, "Three", "Four"]})
    return describe(Dataset.from_tables(events, items, name="tiny", time_unit="s"))


def test_values(stats):
    assert (stats["n_users"], stats["n_candidates"], stats["n_catalogue"], stats["n_interactions"]) == (
        3,
        3,
        4,
        8,
    )
    assert stats["density"] == 8 / 9
    assert stats["history_length"] == {
        "mean": 8 / 3,
        "p0": 1,
        "p5": 1,
        "p25": 1,
        "p50": 3,
        "p75": 3,
        "p95": 3,
        "p100": 4,
    }
    assert stats["item_events"]["p100"] == 3 and stats["item_events"]["p0"] == 2
    assert stats["tied_share"] == 4 / 8 and stats["last_two_tied_share"] == 1.0
    assert stats["repeated_share"] == 2 / 8
    assert stats["splits"] == {
        "validation": {"targets": 2, "users": 2, "repeated_share": 0.5},
        "test": {"targets": 2, "users": 2, "repeated_share": 0.5},
    }
    assert stats["items_without_text"] == 1 and stats["catalogue_only_items"] == 1
    assert stats["time"] == {
        "unit": "s",
        "first": 0,
        "last": 172_800,
        "text": "1970-01-01 00:00:00 to 1970-01-03 00:00:00 UTC (2.0 days, kept in s)",
    }


def test_time_span_in_other_units():
    def span(unit, *times):
        events = pl.DataFrame({"user_id": 1, "item_id": 1, "timestamp": list(times)})
        return describe(Dataset.from_tables(events, time_unit=unit))["time"]["text"]

    assert (
        span("ns", -1, 2 * 10**9) == "1969-12-31 23:59:59 to 1970-01-01 00:00:02 UTC (0.0 days, kept in ns)"
    )
    assert span("index", 0, 2276) == "positions 0 to 2,276 (no clock times)"


def test_table(stats):
    console = Console(width=140, record=True, file=StringIO())
    console.print(render(stats))
    text = console.export_text()
    assert "3 candidates, 1 only in the catalogue" in text
    assert "50.0% of events; the last two events of 100.0% of users (order: file)" in text
    assert "2 targets of 2 users, 50.00% of them met before" in text
    assert stats["fingerprint"] in text


def test_movielens_100k_ties(shared_data):
    names = ["user_id", "item_id", "rating", "timestamp"]
    events = pl.read_csv(shared_data / "ml-100k/u.data", separator="\t", has_header=False, new_columns=names)
    stats = describe(Dataset.from_tables(events))
    assert round(stats["last_two_tied_share"], 2) == 0.44
    assert stats["time"]["text"].startswith("1997-09-20 03:05:10 to 1998-04-22 23:10:38 UTC")
