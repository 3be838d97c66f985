"""The four splits, held against per-user loops, and the order of histories."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hllm.data.splits import Packed, SplitOptions, cold_tokens, history_order, make_split
from hllm.errors import ConfigError, DataError


def packed(histories, unit="s"):
    """Histories as lists of (token, time)."""
    flat = [event for h in histories for event in h]
    offsets = np.cumsum([0, *(len(h) for h in histories)])
    tokens = np.array([e[0] for e in flat], dtype=np.int32)
    times = np.array([e[1] for e in flat], dtype=np.int64)
    return Packed(tokens, times, offsets, int(tokens.max(initial=0)), unit)


def of_lengths(*lengths):
    return packed([[(t % 7 + 1, t) for t in range(n)] for n in lengths])


histories = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=7).map(
        lambda h: sorted(h, key=lambda e: e[1])
    ),
    min_size=1,
    max_size=12,
)


def test_case_d6_leave_one_out_of_short_users():
    split = make_split(of_lengths(1, 2, 3), SplitOptions())
    assert split.train_mask.tolist() == [True, True, True, True, False, False]
    assert split.queries["validation"].tolist() == [4] and split.queries["test"].tolist() == [5]
    assert split.counts == {"users_too_short": 2}


@given(histories)
def test_leave_one_out_equals_a_loop(data):
    split = make_split(packed(data), SplitOptions())
    start, mask, validation, test = 0, [], [], []
    for history in data:
        n = len(history)
        held = 2 if n >= 3 else 0
        mask += [True] * (n - held) + [False] * held
        if held:
            validation.append(start + n - 2)
            test.append(start + n - 1)
        start += n
    assert split.train_mask.tolist() == mask
    assert split.queries["validation"].tolist() == validation and split.queries["test"].tolist() == test


def test_user_ratio_is_the_seeded_shuffle_of_sorted_users():
    data = of_lengths(*[4] * 20)
    split = make_split(data, SplitOptions("user-ratio", seed=3, ratio=(0.7, 0.1, 0.2)))
    order = np.arange(20)
    np.random.RandomState(3).shuffle(order)
    train, validation, test = order[:14], order[14:16], order[16:]
    assert sorted(np.flatnonzero(split.train_mask) // 4) == sorted(np.repeat(train, 4))
    assert split.queries["validation"].tolist() == sorted(validation * 4 + 3)
    assert split.queries["test"].tolist() == sorted(test * 4 + 3)
    assert split.options["ratio"] == [0.7, 0.1, 0.2]


def test_user_ratio_all_targets_and_users_too_short():
    data = of_lengths(1, 3, 1, 3, 1, 3, 1, 3, 1, 3)
    split = make_split(data, SplitOptions("user-ratio", seed=0, ratio=(0.2, 0.4, 0.4), targets="all"))
    held = np.concatenate(list(split.queries.values()))
    users = np.searchsorted(data.offsets, held, side="right") - 1
    assert (held > data.offsets[users]).all()  # never a first event
    assert not split.train_mask[held].any()
    lengths = data.lengths[np.random.RandomState(0).permutation(10)[2:]]
    assert len(held) == (lengths - 1).sum()
    short = split.counts["validation_users_too_short"] + split.counts["test_users_too_short"]
    assert short == (lengths == 1).sum() > 0


@given(histories, st.integers(0, 19), st.integers(1, 19))
def test_temporal_equals_a_loop(data, first, gap):
    marks = (first, first + gap)
    split = make_split(packed(data), SplitOptions("temporal", cutoffs=marks))
    starts = np.cumsum([0, *(len(h) for h in data)])
    expected = {"validation": [], "test": []}
    for history, start in zip(data, starts, strict=False):
        for name, mark, end in (("validation", *marks), ("test", marks[1], 10**9)):
            after = [i for i, (_, time) in enumerate(history) if time > mark]
            if after and history[after[0]][1] <= end and after[0] > 0:
                expected[name].append(int(start) + after[0])
    assert {name: at.tolist() for name, at in split.queries.items()} == expected
    assert split.train_mask.tolist() == [time <= marks[0] for h in data for _, time in h]
    assert not set(expected["validation"]) & set(expected["test"])


def test_temporal_counts_users_without_history_apart():
    data = packed([[(1, 1), (2, 6), (3, 11)], [(1, 7), (2, 12)], [(1, 2)], [(4, 13)]])
    split = make_split(data, SplitOptions("temporal", cutoffs=(5, 10)))
    assert split.queries["validation"].tolist() == [1] and split.queries["test"].tolist() == [2, 4]
    assert split.counts == {
        "validation_users_without_history": 1,
        "validation_users_without_target": 2,
        "test_users_without_history": 1,
        "test_users_without_target": 1,
    }


def test_temporal_by_share_of_events_and_by_date():
    data = packed([[(1, t) for t in range(1, 11)]])
    split = make_split(data, SplitOptions("temporal"))
    assert split.options["cutoffs"] == [0.8, 0.9] and split.options["cutoff_times"] == [8, 9]
    assert split.queries["validation"].tolist() == [8] and split.queries["test"].tolist() == [9]
    dated = make_split(
        packed([[(1, t) for t in range(0, 10**9, 10**8)]], "ms"),
        SplitOptions("temporal", cutoffs=["1970-01-02", "1970-01-05T12:00:00"]),
    )
    assert dated.options["cutoff_times"] == [86_400_000, 4 * 86_400_000 + 43_200_000]
    for cutoffs, error, message in (
        ((9, 0.1), DataError, "are at times 9 and 1: the validation cut-off must come before"),
        ((0.9, 0.8), ConfigError, "validation cut-off must come before"),
        (("2024-02-01", "2024-01-31"), ConfigError, "validation cut-off must come before"),
        (("now", "2024-01-31"), ConfigError, "'now' is not an ISO date"),
        ((float("nan"), 5), ConfigError, "cutoff nan"),
        ("soon", ConfigError, "give two"),
        (("soon", "later"), ConfigError, "'soon' is not an ISO date"),
        ((1.5, 2), ConfigError, "cutoff 1.5"),
    ):
        with pytest.raises(error, match=message):
            make_split(data, SplitOptions("temporal", cutoffs=cutoffs))
    with pytest.raises(ConfigError, match="times are positions"):
        make_split(
            packed([[(1, 1)]], "index"), SplitOptions("temporal", cutoffs=("2024-01-01", "2024-02-01"))
        )


@given(histories, st.integers(0, 5))
def test_cold_items_are_never_trained_on_and_alone_are_asked_for(data, seed):
    source = packed(data)
    base = make_split(source, SplitOptions())
    split = make_split(source, SplitOptions("cold-items", seed=seed, cold_share=0.3))
    cold = cold_tokens(source.n_candidates, 0.3, seed)
    is_cold = np.isin(source.tokens, cold)
    assert (split.train_mask == (base.train_mask & ~is_cold)).all()
    for name, positions in split.queries.items():
        assert positions.tolist() == [p for p in base.queries[name] if is_cold[p]]
    assert split.counts["cold_items"] == len(cold) == max(1, round(0.3 * source.n_candidates))


def test_cold_tokens_depend_on_the_seed():
    first, again, other = cold_tokens(100, 0.1, 0), cold_tokens(100, 0.1, 0), cold_tokens(100, 0.1, 1)
    assert first.tolist() == again.tolist() != other.tolist()
    assert len(first) == 10 and first.min() >= 1 and first.max() <= 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "leave-1-out"}, r"unknown split 'leave-1-out' \(did you mean 'leave-one-out'\?\)"),
        ({"ratio": (0.8, 0.1, 0.1)}, "ratio belongs to split=user-ratio"),
        ({"name": "user-ratio", "ratio": (0.8, 0.1, 0.2)}, "sum to 1"),
        ({"name": "user-ratio", "ratio": (0.9, 0.1)}, "three shares"),
        ({"name": "user-ratio", "targets": "first"}, "unknown targets 'first'"),
        ({"name": "temporal", "cutoffs": (1,)}, "give two"),
        ({"name": "cold-items", "cold_share": 1.0}, "between 0 and 1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(ConfigError, match=message):
        SplitOptions(**options)


def test_case_d5_ties_keep_file_order():
    order = history_order(np.zeros(4, int), np.full(4, 5), np.array([9, 3, 7, 1]))
    assert order.tolist() == [0, 1, 2, 3]


def test_case_d5_shuffled_ties_depend_on_the_seed_alone():
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 5, 200), rng.integers(0, 4, 200)
    items = np.arange(200)

    def shuffled(seed, rows):
        order = history_order(users[rows], times[rows], items[rows], "shuffle", seed)
        return items[rows][order].tolist()

    as_is = np.arange(200)
    first = shuffled(0, as_is)
    assert first == shuffled(0, rng.permutation(200))
    assert first != shuffled(1, as_is)
    assert first != items[history_order(users, times, items)].tolist()
    key = list(zip(users[first], times[first], strict=True))
    assert key == sorted(key)
    with pytest.raises(ConfigError, match="unknown ties 'random'"):
        history_order(users, times, items, "random")
