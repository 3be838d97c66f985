"""Windows against plain loops over prefixes, written from the rules and not from the code."""

from __future__ import annotations

import numpy as np
import pytest

from hllm.compat.rechub import histories, windows
from hllm.errors import ArtifactError, ConfigError, DataError
from hllm.formats import rechub as folder

# Users of 3, 4, 6 and 9 events; token t of user u is 10 u + t, one event an hour, then a minute.
LENGTHS = (3, 4, 6, 9)
OFFSETS = np.concatenate(([0], np.cumsum(LENGTHS)))
TOKENS = np.concatenate([10 * u + np.arange(1, n + 1) for u, n in enumerate(LENGTHS)]).astype(np.int32)
TIMES = np.concatenate([10**9 + np.arange(n) * 3600 + 60 * u for u, n in enumerate(LENGTHS)])


def user(u: int) -> tuple[list[int], list[int]]:
    span = slice(OFFSETS[u], OFFSETS[u + 1])
    return TOKENS[span].tolist(), TIMES[span].tolist()


def padded(prefixes: list[tuple[int, int]], width: int) -> dict[str, list]:
    """Windows (user, number of events) as torch-rechub stores them."""
    rows: dict[str, list] = {name: [] for name in windows.COLUMNS}
    for u, n in prefixes:
        tokens, times = user(u)
        history, ago = tokens[:n][-width:], [times[n - 1] - t for t in times[:n]][-width:]
        rows["seq_tokens"].append([0] * (width - len(history)) + history)
        rows["seq_time_diffs"].append([0] * (width - len(ago)) + ago)
        rows["seq_positions"].append(list(range(width)))
        rows["targets"].append(tokens[n])
    return rows


def assert_equal(found: windows.StoredWindows, expected: dict[str, list]) -> None:
    arrays = found.arrays()
    assert {name: array.tolist() for name, array in arrays.items()} == expected


@pytest.mark.parametrize("width", [4, 20])
def test_leave_last_out(width):
    found = windows.leave_last_out(TOKENS, TIMES, OFFSETS, width)
    kept = [(u, n) for u, n in enumerate(LENGTHS) if n >= 4]
    assert_equal(found["train"], padded([(u, k) for u, n in kept for k in range(1, n - 2)], width))
    assert_equal(found["val"], padded([(u, n - 2) for u, n in kept], width))
    assert_equal(found["test"], padded([(u, n - 1) for u, n in kept], width))
    arrays = found["train"].arrays()
    assert {k: str(v.dtype) for k, v in arrays.items()} == windows.MOVIELENS_DTYPES


@pytest.mark.parametrize("ratio", [(0.7, 0.1), (0.5, 0.25)])
def test_user_ratio_shuffles_as_numpys_global_state_does(ratio):
    found = windows.user_ratio(TOKENS, TIMES, OFFSETS, 5, ratio, seed=4)
    users = np.arange(4)
    np.random.seed(4)
    np.random.shuffle(users)
    first, second = int(4 * ratio[0]), int(4 * ratio[0]) + int(4 * ratio[1])
    for split, chosen in (("train", users[:first]), ("val", users[first:second]), ("test", users[second:])):
        expected = padded([(u, k) for u in sorted(chosen.tolist()) for k in range(1, LENGTHS[u])], 5)
        if chosen.size:
            assert_equal(found[split], expected)
        else:
            assert len(found[split]) == 0


def test_books_windows_are_ragged_and_leak_in_the_document_state():
    for state, least, end in (("rechub", 4, -2), ("rechub-doc", 3, -1)):
        found = windows.books(TOKENS, TIMES, OFFSETS, max_seq_len=6, min_seq_len=3, state=state)
        train, test = [], []
        for u in range(4):
            tokens = user(u)[0][-6:]
            if len(tokens) >= least:
                train += [(tokens[:k], tokens[k]) for k in range(2, len(tokens) + end)]
                test.append((tokens[:-1], tokens[-1]))
        for split, expected in (("train", train), ("test", test)):
            rows = found[split].rows(np.arange(len(found[split])))
            assert list(zip(rows["seq_tokens"], rows["targets"], strict=True)) == expected
            assert rows["seq_positions"] == [list(range(len(row))) for row in rows["seq_tokens"]]
            assert all(ago == [3600 * k for k in reversed(range(len(ago)))] for ago in rows["seq_time_diffs"])
        # In the document's state a user of 3 events has no validation window.
        assert len(found["val"]) == sum(n >= 4 for n in LENGTHS)


def test_beauty_counts_time_from_the_target_and_restarts_positions():
    found = windows.beauty(TOKENS - 1, TIMES, OFFSETS, max_seq_len=3, ratio=(0.5, 0.25))
    prefixes = [(u, k) for u in range(4) for k in range(1, LENGTHS[u])]
    first, second = 9, 13  # half and a quarter of 18 windows
    for split, part in (
        ("train", prefixes[:first]),
        ("val", prefixes[first:second]),
        ("test", prefixes[second:]),
    ):
        rows = found[split].arrays()
        for row, (u, k) in enumerate(part):
            n = min(k, 3)
            tokens = user(u)[0]
            assert rows["seq_tokens"][row].tolist() == [0] * (3 - n) + [t - 1 for t in tokens[k - n : k]]
            assert rows["seq_time_diffs"][row].tolist() == [0] * (3 - n) + [3600 * j for j in range(n, 0, -1)]
            assert rows["seq_positions"][row].tolist() == list(range(3 - n)) + list(range(n))
            assert rows["targets"][row] == tokens[k] - 1
    assert rows["seq_time_diffs"].dtype == np.float32


def test_ragged_windows_as_arrays():
    found = windows.books(TOKENS, TIMES, OFFSETS[:4], min_seq_len=4)["test"].arrays()
    assert found["seq_tokens"].tolist() == [[0, 0, 11, 12, 13], [21, 22, 23, 24, 25]]
    assert found["targets"].tolist() == [14, 26]


def test_users_too_short_for_a_split():
    with pytest.raises(DataError, match="none of 1 users has the 4 events"):
        windows.leave_last_out(TOKENS, TIMES, OFFSETS[:2])
    with pytest.raises(DataError, match="max_seq_len=3 leaves no user"):
        windows.books(TOKENS, TIMES, OFFSETS, max_seq_len=3)


def test_movielens_filters_one_pass_each():
    users = np.repeat([9, 2, 5], [6, 5, 4])
    items = np.array([30, 10, 20, 40, 50, 60, 10, 20, 30, 40, 50, 10, 20, 30, 40])
    times = np.arange(15)[::-1].copy()
    times[6:8] = 7  # a tie keeps the order of the file
    found = histories.movielens(users, items, times)
    assert found.user_ids.tolist() == [2, 9] and found.offsets.tolist() == [0, 5, 11]  # 5 has four events
    assert found.item_ids.tolist() == [10, 20, 30, 40, 50, 60]
    assert found.item_ids[found.tokens[:5] - 1].tolist() == [50, 40, 30, 10, 20]
    ratings = np.full(15, 3)
    ratings[0] = 2
    with pytest.raises(DataError, match="left nothing of 15 ratings"):  # no item occurs five times
        histories.movielens(users, items, times, ratings, "rechub-doc")
    with pytest.raises(DataError, match="no ratings"):
        histories.movielens(users, items, times, state="rechub-doc")
    with pytest.raises(ConfigError, match="unknown state"):
        histories.movielens(users, items, times, state="doc")
    many = histories.movielens(
        np.repeat(np.arange(5), 6),
        np.tile(np.arange(6), 5),
        np.arange(30),
        np.tile([1, 3, 4, 5, 5, 3], 5),
        "rechub-doc",
    )
    assert many.item_ids.tolist() == [1, 2, 3, 4, 5] and len(many.tokens) == 25


def test_books_and_beauty_keep_the_order_of_appearance():
    users = np.array(["z", "a", "z", "a", "z", "b"])
    items = np.array(["q", "c", "c", "q", "x", "c"])
    times = np.array([1, 2, 3, 4, 5, 6])
    found = histories.books(users, items, times, min_interactions=2)
    assert found.user_ids.tolist() == ["z", "a"] and found.item_ids.tolist() == ["q", "c"]
    assert found.tokens.tolist() == [1, 2, 2, 1] and found.offsets.tolist() == [0, 2, 4]
    assert len(histories.books(users, items, times, min_interactions=None).tokens) == 6
    cleaned = histories.beauty(users, items, times, min_seq_len=2)
    assert cleaned.user_ids.tolist() == ["z", "a"] and cleaned.item_ids.tolist() == ["c", "q", "x"]
    assert cleaned.tokens.tolist() == [2, 1, 3, 1, 2]


def _write(path, parts, layout="nested", ids=range(101, 201)):
    folder.write_vocab(path, list(ids), layout)
    for split, part in parts.items():
        folder.write_windows(path, split, part)


@pytest.mark.parametrize("width", [3, 4, 20])
def test_histories_come_back_from_leave_last_out(tmp_path, width):
    _write(tmp_path, windows.leave_last_out(TOKENS, TIMES, OFFSETS, width))
    found = histories.from_folder(tmp_path)
    assert found.leave_last_out and found.offsets.tolist() == [0, 4, 10, 19]
    assert found.tokens.tolist() == TOKENS[3:].tolist()
    # The last event was never an input: its time is that of the event before.
    assert found.times[:4].tolist() == [0, 3600, 7200, 7200]
    assert found.times[10:].tolist() == [*(3600 * np.arange(8)).tolist(), 7 * 3600]


def test_histories_come_back_from_a_user_split(tmp_path):
    _write(tmp_path, windows.user_ratio(TOKENS, TIMES, OFFSETS, 4, (0.5, 0.25), seed=1), "flat")
    found = histories.from_folder(tmp_path)
    assert not found.leave_last_out and found.split.tolist() == [0, 0, 1, 2]
    users = np.arange(4)
    np.random.RandomState(1).shuffle(users)
    order = [*sorted(users[:2]), users[2], users[3]]
    assert found.tokens.tolist() == [t for u in order for t in user(u)[0]]


def test_histories_come_back_from_books_and_beauty(tmp_path):
    _write(tmp_path / "books", windows.books(TOKENS, TIMES, OFFSETS, 6, 4))
    books = histories.from_folder(tmp_path / "books")
    assert books.offsets.tolist() == [0, 4, 10, 16]  # the longest user was cut to 6 events
    assert books.tokens.tolist() == [*user(1)[0], *user(2)[0], *user(3)[0][-6:]]
    ids = [f"B{i:03d}" for i in range(100)]
    _write(tmp_path / "beauty", windows.beauty(TOKENS - 1, TIMES, OFFSETS, 3), "flat-from-0", ids)
    beauty = histories.from_folder(tmp_path / "beauty")
    assert beauty.tokens.tolist() == TOKENS.tolist() and beauty.offsets.tolist() == OFFSETS.tolist()
    assert beauty.times[:3].tolist() == [0, 3600, 7200]


def test_damaged_window_folders_are_refused(tmp_path):
    parts = windows.leave_last_out(TOKENS, TIMES, OFFSETS, 4)
    _write(tmp_path, parts, ids=range(5))
    with pytest.raises(ArtifactError, match=r"outside its vocab\.pkl of 5 items"):
        histories.from_folder(tmp_path)
    _write(tmp_path, {**parts, "train": parts["test"]})
    with pytest.raises(ArtifactError, match="training windows of 0 users do not match 3 test windows"):
        histories.from_folder(tmp_path)
    broken = windows.user_ratio(TOKENS, TIMES, OFFSETS, 4, (0.5, 0.25))
    _write(tmp_path, {**broken, "train": parts["test"]})
    with pytest.raises(ArtifactError, match="not every prefix is there"):
        histories.from_folder(tmp_path)
