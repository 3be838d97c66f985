"""Rating threshold and k-core, against a plain removal loop."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.tables.filters import Filters, apply_filters, k_core
from hllm.errors import ConfigError, DataError


def reference_core(pairs, user_events, item_events):
    """Remove one offending row at a time, until none offends."""
    rows = list(range(len(pairs)))
    while True:
        users = Counter(pairs[r][0] for r in rows)
        items = Counter(pairs[r][1] for r in rows)
        bad = [r for r in rows if users[pairs[r][0]] < user_events or items[pairs[r][1]] < item_events]
        if not bad:
            return set(rows)
        rows.remove(bad[0])


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_k_core_is_the_fixed_point_in_any_row_order(pairs, user_events, item_events, random):
    expected = reference_core(pairs, user_events, item_events)
    order = list(range(len(pairs)))
    random.shuffle(order)
    users, items = np.array([pairs[i] for i in order]).T
    mask = k_core(users, items, user_events, item_events)
    assert {order[i] for i in np.flatnonzero(mask)} == expected


def test_core_goes_on_after_the_first_pass():
    # Dropping item 2 leaves user 1 with one event, whose going leaves item 1 with one, and so on.
    users = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    items = np.array([0, 1, 1, 2, 0, 3, 0, 3])
    mask = k_core(users, items, 2, 2)
    assert mask.tolist() == [False] * 4 + [True] * 4


def test_rating_threshold_comes_first_and_missing_ratings_fail_it():
    users = items = np.array([0, 0, 1, 1])
    kept = apply_filters(users, items, np.array([5, 3, np.nan, 4]), Filters(min_rating=4, min_interactions=1))
    assert kept.rows.tolist() == [True, False, False, True]
    assert kept.counts == {"below_min_rating": 2}
    with pytest.raises(DataError, match="needs interactions with a rating column"):
        apply_filters(users, items, None, Filters(min_rating=4))


def test_specific_thresholds_override_the_general_one():
    filters = Filters(min_interactions=5, min_item_interactions=1)
    assert (filters.user_events, filters.item_events) == (5, 1)
    users = np.array([0] * 5 + [1] * 4)
    kept = apply_filters(users, np.arange(9), None, filters)
    assert kept.rows.sum() == 5 and kept.counts == {"below_min_interactions": 4}


def test_case_d6_a_filter_that_leaves_nothing_names_itself_and_the_rows():
    users, items = np.array([0, 1, 1, 2, 2, 2]), np.array([0, 0, 1, 0, 1, 2])
    with pytest.raises(
        DataError, match=r"filter min_interactions=10 leaves nothing \(6 rows before, 0 after\)"
    ):
        apply_filters(users, items, None, Filters(min_interactions=10))
    with pytest.raises(DataError, match=r"filter min_rating=6 leaves nothing \(6 rows before, 0 after\)"):
        apply_filters(users, items, np.ones(6), Filters(min_rating=6))
    with pytest.raises(DataError, match="min_user_interactions, min_item_interactions=4, 1 leaves nothing"):
        apply_filters(users, items, None, Filters(min_user_interactions=4))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "5"])
def test_thresholds_must_be_whole(value):
    with pytest.raises(ConfigError, match="min_interactions="):
        Filters(min_interactions=value)
    with pytest.raises(ConfigError, match="min_rating=nan"):
        Filters(min_rating=float("nan"))
