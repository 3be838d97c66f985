"""The windows torch-rechub's preprocessing makes, from packed histories, without holding them.

A window is two positions in the packed arrays: where it begins, and its target, right after its
last event. So 981,491 windows of ML-1M take 16 MB here; padded arrays of them take 3.1 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hllm.compat.rechub.states import STATES, State, check
from hllm.errors import DataError

Arrays = dict[str, np.ndarray]
COLUMNS = ("seq_tokens", "seq_positions", "seq_time_diffs", "targets")


@dataclass(frozen=True)
class StoredWindows:
    """W windows over N packed events. Window w = events [begins[w], targets[w]), to predict event targets[w].

    tokens  int (N,)     as written to the files
    times   int64 (N,)   whole seconds
    begins, targets int64 (W,)
    width   padded length (padding on the left), or None for ragged lists
    dtypes  stored type by column
    from_target  time differences count from the target's time instead of the last event's
    restart      positions restart at the first event instead of counting the padding
    """

    tokens: np.ndarray
    times: np.ndarray
    begins: np.ndarray
    targets: np.ndarray
    width: int | None
    dtypes: dict[str, str]
    from_target: bool = False
    restart: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> np.ndarray:
        """Events per window, int64 (W,)."""
        return self.targets - self.begins

    def dtype(self, column: str) -> np.dtype[Any]:
        """Type in which `column` is stored."""
        return np.dtype(self.dtypes[column])

    def column(self, column: str, first: int, last: int) -> Any:
        """Rows [first, last) of a column: array (n, width) or (n,), or lists where `width` is None."""
        return self.rows(np.arange(first, min(last, len(self))), (column,))[column]

    def rows(self, index: Sequence[int] | np.ndarray, columns: Sequence[str] = COLUMNS) -> dict[str, Any]:
        """The windows at `index` as torch-rechub stores them."""
        begins, targets = self.begins[index], self.targets[index]
        if self.width is None:
            return {name: self._lists(name, begins, targets) for name in columns}
        at = targets[:, None] + np.arange(-self.width, 0)  # (n, width): positions in the packed arrays
        event = at >= begins[:, None]
        at = np.maximum(at, 0)
        return {name: self._padded(name, at, event, targets).astype(self.dtypes[name]) for name in columns}

    def arrays(self) -> Arrays:
        """All windows as padded arrays, for `SequenceDataGenerator`: large, see above.

        Ragged windows are padded on the left to the longest, positions and times with 0.
        """
        if self.width is not None:
            return self.rows(np.arange(len(self)))
        from hllm.compat.rechub.data import pad_sequences

        rows = self.rows(np.arange(len(self)))
        return {
            k: np.array(v) if k == "targets" else pad_sequences(v, dtype=self.dtypes[k])
            for k, v in rows.items()
        }

    def _padded(self, name: str, at: np.ndarray, event: np.ndarray, targets: np.ndarray) -> np.ndarray:
        if name == "seq_tokens":
            return np.where(event, self.tokens[at], 0)
        if name == "seq_positions":
            position = np.broadcast_to(np.arange(at.shape[1]), at.shape)
            padding = (~event).sum(axis=1, keepdims=True)
            return np.where(event, position - padding, position) if self.restart else position
        if name == "seq_time_diffs":
            return np.where(event, self.times[self._anchor(targets)][:, None] - self.times[at], 0)
        return self.tokens[targets]

    def _lists(self, name: str, begins: np.ndarray, targets: np.ndarray) -> list[Any]:
        if name == "targets":
            return self.tokens[targets].tolist()
        spans = zip(begins.tolist(), targets.tolist(), strict=True)
        if name == "seq_positions":
            return [list(range(end - begin)) for begin, end in spans]
        if name == "seq_tokens":
            return [self.tokens[begin:end].tolist() for begin, end in spans]
        anchors = self._anchor(targets)
        return [(self.times[a] - self.times[b:e]).tolist() for a, (b, e) in zip(anchors, spans, strict=True)]

    def _anchor(self, targets: np.ndarray) -> np.ndarray:
        return targets if self.from_target else targets - 1


INT32 = dict.fromkeys(COLUMNS, "int32")
MOVIELENS_DTYPES = {**INT32, "seq_time_diffs": "int64"}
BEAUTY_DTYPES = {**dict.fromkeys(COLUMNS, "int64"), "seq_time_diffs": "float32"}


def leave_last_out(
    tokens: np.ndarray, times: np.ndarray, offsets: np.ndarray, max_seq_len: int = 200
) -> dict[str, StoredWindows]:
    """MovieLens in release 0.9: per user the last event is the test target, the one before validation's.

    Every prefix before them is a training window. Users with fewer than 4 events are skipped.
    tokens (N,), times int64 (N,) whole seconds, offsets int64 (U + 1,), as a dataset has them packed.
    """
    starts, ends = _users(offsets, at_least=4)
    users, targets = _every_target(starts + 1, ends - 2)
    return {
        "train": _cut(tokens, times, starts[users], targets, max_seq_len),
        "val": _cut(tokens, times, starts, ends - 2, max_seq_len),
        "test": _cut(tokens, times, starts, ends - 1, max_seq_len),
    }


def user_ratio(
    tokens: np.ndarray,
    times: np.ndarray,
    offsets: np.ndarray,
    max_seq_len: int = 200,
    ratio: tuple[float, float] = (0.7, 0.1),
    seed: int = 0,
) -> dict[str, StoredWindows]:
    """MovieLens in the document's state: users are shuffled and split, every prefix of theirs is a window.

    `ratio` = shares of training and validation users: (.7, .1) as its code has it, (.8, .1) as its
    text says. Users keep their packed order (sorted by id) before `RandomState(seed)` shuffles
    them: what the original does after `np.random.seed(seed)`.
    """
    starts, ends = _users(offsets, at_least=2)
    order = np.arange(len(starts))
    np.random.RandomState(seed).shuffle(order)
    first = int(len(starts) * ratio[0])
    second = first + int(len(starts) * ratio[1])
    found = {}
    for split, chosen in (("train", order[:first]), ("val", order[first:second]), ("test", order[second:])):
        kept = np.sort(chosen)
        users, targets = _every_target(starts[kept] + 1, ends[kept])
        found[split] = _cut(tokens, times, starts[kept][users], targets, max_seq_len, INT32)
    return found


def books(
    tokens: np.ndarray,
    times: np.ndarray,
    offsets: np.ndarray,
    max_seq_len: int = 200,
    min_seq_len: int = 5,
    state: State = "rechub",
) -> dict[str, StoredWindows]:
    """Amazon Books: ragged windows of at least two events (training), users cut to `max_seq_len` first.

    `rechub-doc` trains on the validation target too (a leak of the original, kept for comparison),
    and takes users from 3 events; `rechub` from 4. Users below `min_seq_len` are skipped in both.
    """
    check("state", state, STATES)
    doc = state == "rechub-doc"
    least = 3 if doc else 4
    if max_seq_len < least:
        raise DataError(f"max_seq_len={max_seq_len} leaves no user the {least} events that this split needs")
    starts, ends = _users(offsets, at_least=max(min_seq_len, least))
    starts = np.maximum(starts, ends - max_seq_len)
    users, targets = _every_target(starts + 2, ends - 1 if doc else ends - 2)
    has_val = ends - 2 - starts >= 2
    return {
        "train": StoredWindows(tokens, times, starts[users], targets, None, INT32),
        "val": StoredWindows(tokens, times, starts[has_val], ends[has_val] - 2, None, INT32),
        "test": StoredWindows(tokens, times, starts, ends - 1, None, INT32),
    }


def beauty(
    tokens: np.ndarray,
    times: np.ndarray,
    offsets: np.ndarray,
    max_seq_len: int = 200,
    min_seq_len: int = 2,
    ratio: tuple[float, float] = (0.8, 0.1),
) -> dict[str, StoredWindows]:
    """Amazon Beauty at commit 9f82159: every prefix a window, windows cut 80/10/10 in order.

    Time differences count from the target's time (a leak of the original). Windows are padded to
    the longest of their split. To write that state's files, pass tokens - 1: its vocabulary
    starts at 0.
    """
    starts, ends = _users(offsets, at_least=max(min_seq_len, 2))
    users, targets = _every_target(starts + 1, ends)
    begins = np.maximum(starts[users], targets - max_seq_len)
    first = int(len(targets) * ratio[0])
    second = first + int(len(targets) * ratio[1])
    found = {}
    for split, part in (
        ("train", slice(0, first)),
        ("val", slice(first, second)),
        ("test", slice(second, None)),
    ):
        b, t = begins[part], targets[part]
        width = int((t - b).max(initial=0))
        found[split] = StoredWindows(
            tokens, times, b, t, width, BEAUTY_DTYPES, from_target=True, restart=True
        )
    return found


def _users(offsets: np.ndarray, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends of users with enough events; DataError where nobody has."""
    starts, ends = np.asarray(offsets[:-1], dtype=np.int64), np.asarray(offsets[1:], dtype=np.int64)
    kept = ends - starts >= at_least
    if not kept.any():
        raise DataError(f"none of {len(starts)} users has the {at_least} events that this split needs")
    return starts[kept], ends[kept]


def _every_target(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Users' numbers and positions first[u] .. last[u] - 1 of all users, laid end to end."""
    counts = np.maximum(last - first, 0)
    users = np.repeat(np.arange(len(first)), counts)
    within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return users, first[users] + within


def _cut(
    tokens: np.ndarray,
    times: np.ndarray,
    begins: np.ndarray,
    targets: np.ndarray,
    width: int,
    dtypes: dict[str, str] = MOVIELENS_DTYPES,
) -> StoredWindows:
    return StoredWindows(tokens, times, np.maximum(begins, targets - width), targets, width, dtypes)
