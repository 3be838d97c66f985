"""Packed histories as torch-rechub's preprocessing would have them: from raw tables, or from its windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hllm.compat.rechub.states import STATES, State, check
from hllm.errors import ArtifactError, DataError
from hllm.formats.rechub import SPLITS, Vocab, read_vocab, read_windows


@dataclass(frozen=True)
class PackedHistories:
    """U users' events laid end to end, each user's in order of time (ties in the order of the file).

    tokens int32 (N,) from 1; times int64 (N,) seconds; offsets int64 (U + 1,);
    user_ids (U,); item_ids (I,), item_ids[t - 1] = token t.
    """

    tokens: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray


def movielens(
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    ratings: np.ndarray | None = None,
    state: State = "rechub",
    min_seq_len: int = 5,
) -> PackedHistories:
    """Its MovieLens filters, one pass each; users and tokens in the order of their ids.

    `rechub`: users with `min_seq_len` events. `rechub-doc`: ratings of 3 and more, then items with
    5 events, then users. Raises DataError where the latter has no ratings, or nothing is left.
    """
    check("state", state, STATES)
    kept = np.arange(len(users))
    if state == "rechub-doc":
        if ratings is None:
            raise DataError("state 'rechub-doc' keeps ratings of 3 and more, but this data has no ratings")
        kept = kept[np.asarray(ratings)[kept] >= 3]
        kept = kept[_counts(items[kept]) >= 5]
    kept = kept[_counts(users[kept]) >= min_seq_len]
    return _pack(users[kept], items[kept], times[kept], by_id=True, what=f"{len(users)} ratings")


def books(
    users: np.ndarray, items: np.ndarray, times: np.ndarray, min_interactions: int | None = 5
) -> PackedHistories:
    """Its Amazon Books filter; users and tokens in the order of their first appearance in the file.

    Items and users with `min_interactions` events, both counted before either is removed, then
    users again; None keeps everything (its choice for ByteDance's file).
    """
    kept = np.arange(len(users))
    if min_interactions is not None:
        kept = kept[(_counts(items) >= min_interactions) & (_counts(users) >= min_interactions)]
        kept = kept[_counts(users[kept]) >= min_interactions]
    return _pack(users[kept], items[kept], times[kept], by_id=False, what=f"{len(users)} interactions")


def beauty(users: np.ndarray, items: np.ndarray, times: np.ndarray, min_seq_len: int = 2) -> PackedHistories:
    """Its Amazon Beauty rule: users with `min_seq_len` reviews, in order of appearance; tokens by id."""
    kept = np.flatnonzero(np.asarray(times) != 0)
    kept = kept[_counts(users[kept]) >= min_seq_len]
    packed = _pack(users[kept], items[kept], times[kept], by_id=False, what=f"{len(users)} reviews")
    item_ids, tokens = np.unique(packed.item_ids[packed.tokens - 1], return_inverse=True)
    return PackedHistories(
        tokens.astype(np.int32) + 1, packed.times, packed.offsets, packed.user_ids, item_ids
    )


def _counts(values: np.ndarray) -> np.ndarray:
    """How often each element's value occurs, int64 of the same length."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[inverse]


def _pack(users: np.ndarray, items: np.ndarray, times: np.ndarray, by_id: bool, what: str) -> PackedHistories:
    if not len(users):
        raise DataError(f"the filters left nothing of {what}; use smaller minimum counts")
    user_ids, rows = _codes(users, by_id)
    item_ids, codes = _codes(items, by_id)
    times = np.asarray(times, dtype=np.int64)
    order = np.lexsort((times, rows))  # stable
    offsets = np.concatenate(([0], np.bincount(rows).cumsum()))
    return PackedHistories((codes[order] + 1).astype(np.int32), times[order], offsets, user_ids, item_ids)


def _codes(values: np.ndarray, by_id: bool) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values and each element's number, in sorted order or in order of appearance."""
    distinct, first, codes = np.unique(values, return_index=True, return_inverse=True)
    if by_id:
        return distinct, codes
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    return distinct[order], number[codes]


@dataclass(frozen=True)
class FolderHistories:
    """What a processed folder's windows say: histories, and who is held out.

    tokens int32 (N,), offsets int64 (U + 1,) as in `PackedHistories`. times int64 (N,): seconds since the
    user's first event (windows hold differences only); where a last event was never an input its
    time is unknown and set to the time of the event before.
    leave_last_out  the last two events of every user are validation and test
    split           else: int8 (U,), 0 training, 1 validation, 2 test user
    """

    tokens: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    leave_last_out: bool
    split: np.ndarray


def from_folder(folder: Path | str) -> FolderHistories:
    """Rebuild packed histories from a folder's windows, in either state.

    Raises ArtifactError where the windows are not those of the preprocessing scripts, in their order.
    """
    vocab = read_vocab(folder)
    parts = [_Part(read_windows(folder, split), vocab) for split in SPLITS]
    train, _, test = parts
    # Beauty's test part may begin inside a user; elsewhere a prefix of one event tells the state.
    one_test_a_user = not vocab.shift and len(test) > 0 and int(test.lengths.min()) > 1
    users = list(_leave_last_out(train, test) if one_test_a_user else _prefixes(parts))
    if not users or len(parts[0]) + len(parts[1]) == 0:
        raise ArtifactError(f"the windows in {folder} belong to no user; run the preprocessing script again")
    offsets = np.concatenate(([0], np.cumsum([len(tokens) for tokens, _, _ in users])))
    tokens = np.concatenate([tokens for tokens, _, _ in users]).astype(np.int32)
    if tokens.min() < 1 or tokens.max() > len(vocab.item_ids):
        raise ArtifactError(
            f"the windows in {folder} hold tokens outside its vocab.pkl of {len(vocab.item_ids)} items"
        )
    times = np.concatenate([gaps.cumsum() for _, gaps, _ in users]).astype(np.int64)
    return FolderHistories(
        tokens, times, offsets, one_test_a_user, np.array([s for _, _, s in users], dtype=np.int8)
    )


User = tuple[np.ndarray, np.ndarray, int]  # tokens (n,), seconds since the event before (n,), split


class _Part:
    """Windows of one split: their lengths, last tokens, targets, and the gaps around the last event."""

    def __init__(self, data: dict[str, Any], vocab: Vocab) -> None:
        self.tokens, self.times, self.shift = data["seq_tokens"], data["seq_time_diffs"], vocab.shift
        self.ragged = not isinstance(self.tokens, np.ndarray)
        self.targets = np.asarray(data["targets"], dtype=np.int64) + self.shift
        lengths: list[int]
        if self.ragged:
            lengths = [len(row) for row in self.tokens]
        elif self.shift:  # token 0 is an item: the window begins where positions start again
            lengths = [len(row) - int(np.flatnonzero(row == 0)[-1]) for row in data["seq_positions"]]
        else:
            lengths = [int(np.count_nonzero(row)) for row in self.tokens]
        self.lengths = np.array(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.targets)

    def window(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and gaps (seconds since the event before) of one window, each (length,)."""
        n = int(self.lengths[row])
        ago = np.asarray(self.times[row][len(self.times[row]) - n :], dtype=np.int64)
        tokens = np.asarray(self.tokens[row][len(self.tokens[row]) - n :], dtype=np.int64)
        return tokens + self.shift, np.concatenate(([0], ago[:-1] - ago[1:]))

    def last_tokens(self) -> np.ndarray:
        return self.tokens[:, -1].astype(np.int64) + self.shift

    def gaps(self) -> np.ndarray:
        """Seconds between each window's last two events (0 where there is only one)."""
        if self.times.shape[1] == 1:
            return np.zeros(len(self), dtype=np.int64)
        gaps = self.times[:, -2].astype(np.int64) - self.times[:, -1].astype(np.int64)
        return np.where(self.lengths > 1, gaps, 0)


def _prefixes(parts: list[_Part]) -> Iterator[User]:
    """Users of whom every prefix is a window, in order; a split's end may fall inside one (Beauty)."""
    parts = [part for part in parts if len(part)]
    lengths, targets = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("lengths", "targets")
    )
    tokens, gaps = (
        np.concatenate([getattr(part, name)() for part in parts]) for name in ("last_tokens", "gaps")
    )
    to_target = np.concatenate([part.times[:, -1] for part in parts])  # 0 unless counted from the target
    split = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    starts = np.flatnonzero(lengths == 1)
    if not len(starts) or starts[0] != 0:
        raise ArtifactError("the first window has more than one event, so not every prefix is there")
    for first, last in zip(starts, np.append(starts[1:], len(lengths)), strict=True):
        yield (
            np.append(tokens[first:last], targets[last - 1]),
            np.append(gaps[first:last], int(to_target[last - 1])),
            int(split[first]),
        )


def _leave_last_out(train: _Part, test: _Part) -> Iterator[User]:
    """Users of one test window each; what it was too short to hold comes from the training windows."""
    cut = not test.ragged and bool((test.lengths == test.tokens.shape[1]).any())
    starts = np.flatnonzero(train.lengths == 1) if cut else np.zeros(len(test), dtype=np.int64)
    if len(starts) != len(test):
        raise ArtifactError(f"training windows of {len(starts)} users do not match {len(test)} test windows")
    ends = np.append(starts[1:], len(train))
    events, gaps_before = (train.last_tokens(), train.gaps()) if cut else (train.targets, train.targets)
    for row, (first, last) in enumerate(zip(starts, ends, strict=True)):
        tokens, gaps = test.window(row)
        if cut and len(tokens) == test.tokens.shape[1]:
            # Window k of a user ends with event k, and there are all but the last three of them.
            missing = int(last - first) + 2 - len(tokens)
            tokens = np.concatenate((events[first : first + missing], tokens))
            gaps = np.concatenate((gaps_before[first : first + missing + 1], gaps[1:]))
        yield np.append(tokens, test.targets[row]), np.append(gaps, 0), 0
