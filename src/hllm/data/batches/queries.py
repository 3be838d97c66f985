"""What to rank for: users with the history before a held-out event, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from hllm.data.tables.schema import UNITS_PER_SECOND
from hllm.packing import Batch, offsets_of

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

# Events of a batch to rank for, in all and times its users: with long histories, what bounds the memory of ranking.
QUERY_TOKENS, EVENTS_A_USER = 1 << 15, 64


@dataclass(frozen=True)
class Queries:
    """What to rank for: users with the history before a held-out event. Q queries.

    The history of query i is `tokens[starts[i]:ends[i]]`, the whole of it, whatever the window. Where `clock` is
    False its times are none, and say nothing.
    """

    users: np.ndarray  # int64 (Q,) dataset rows; -1 for anonymous users
    targets: np.ndarray  # int64 (Q,) tokens; 0 where nothing is held out
    starts: np.ndarray  # int64 (Q,)
    ends: np.ndarray  # int64 (Q,)
    tokens: np.ndarray  # int32 (N,)
    times: np.ndarray  # int64 (N,) in the dataset's unit
    time_unit: str = "s"
    clock: np.ndarray | None = None  # bool (Q,); None: every history has times

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> Queries:
        """The queries `rows` int64 (n,), over the same arrays of events."""
        return replace(
            self,
            users=self.users[rows],
            targets=self.targets[rows],
            starts=self.starts[rows],
            ends=self.ends[rows],
            clock=None if self.clock is None else self.clock[rows],
        )

    def history_pairs(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """(row inside `part`, token) int64 pairs of every event in the whole histories of `part`."""
        starts, lengths = self.starts[part], self.ends[part] - self.starts[part]
        rows = np.repeat(np.arange(len(lengths)), lengths)
        return rows, np.asarray(self.tokens[_end_to_end(starts, lengths)], dtype=np.int64)

    def repeated(self) -> np.ndarray:
        """bool (Q,): the target occurs in the history before it."""
        rows, tokens = self.history_pairs(slice(None))
        hit = np.zeros(len(self), dtype=bool)
        hit[rows[tokens == self.targets[rows]]] = True
        return hit


def eval_queries(dataset: Dataset, split: str) -> Queries:
    """Queries of a split ("validation" or "test"): the history is everything before the held-out event."""
    positions = np.asarray(dataset.queries[split], dtype=np.int64)
    offsets = np.asarray(dataset.offsets)
    users = np.searchsorted(offsets, positions, side="right") - 1
    return Queries(
        users=users.astype(np.int64),
        targets=np.asarray(dataset.tokens[positions], dtype=np.int64),
        starts=offsets[users].astype(np.int64),
        ends=positions,
        tokens=dataset.tokens,
        times=dataset.times,
        time_unit=dataset.meta["time_unit"],
    )


def last_queries(dataset: Dataset, rows: np.ndarray) -> Queries:
    """Queries for what comes after the whole history of the users in `rows`; no target.

    Row -1 is somebody unknown, without any history.
    """
    rows = np.asarray(rows, dtype=np.int64)
    offsets = np.asarray(dataset.offsets)
    known = rows >= 0
    return Queries(
        users=rows,
        targets=np.zeros(len(rows), dtype=np.int64),
        starts=np.where(known, offsets[rows], 0).astype(np.int64),
        ends=np.where(known, offsets[rows + 1], 0).astype(np.int64),
        tokens=dataset.tokens,
        times=dataset.times,
        time_unit=dataset.meta["time_unit"],
    )


def history_queries(
    histories: Sequence[Sequence[int]],
    times: Sequence[Sequence[int] | None] | None = None,
    time_unit: str = "s",
) -> Queries:
    """Queries for anonymous users, given the tokens of their histories, oldest first, and times where there are any."""
    lengths = np.array([len(h) for h in histories], dtype=np.int64)
    ends = np.cumsum(lengths)
    flat = np.array([t for h in histories for t in h], dtype=np.int32)
    none = np.zeros(len(histories), dtype=np.int64)
    given: Sequence[Sequence[int] | None] = [None] * len(histories) if times is None else times
    moments = np.zeros(len(flat), dtype=np.int64)
    for start, end, row in zip(ends - lengths, ends, given, strict=True):
        if row is not None:
            moments[start:end] = row
    clock = np.array([row is not None for row in given], dtype=bool)
    return Queries(none - 1, none, ends - lengths, ends, flat, moments, time_unit, clock)


def joined_queries(parts: Sequence[Queries]) -> Queries:
    """Queries over different arrays of events as one, in their order; the events that they have are copied."""
    events = [_end_to_end(p.starts, p.ends - p.starts) for p in parts]
    lengths = np.concatenate([part.ends - part.starts for part in parts])
    ends = np.cumsum(lengths)
    clocks = [np.ones(len(part), bool) if part.clock is None else part.clock for part in parts]
    return Queries(
        users=np.concatenate([part.users for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        starts=ends - lengths,
        ends=ends,
        tokens=np.concatenate([p.tokens[at].astype(np.int32) for p, at in zip(parts, events, strict=True)]),
        times=np.concatenate([p.times[at].astype(np.int64) for p, at in zip(parts, events, strict=True)]),
        time_unit=parts[0].time_unit,
        clock=np.concatenate(clocks),
    )


def query_batches(
    queries: Queries, max_len: int | None, batch_users: int = 512, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, Batch]]:
    """Yield (slice of the queries, Batch of their last `max_len` events). Histories may be empty.

    A batch has at most `batch_users` queries and 64 times as many events, or QUERY_TOKENS, or one query.
    """
    for part in query_parts(queries, max_len, batch_users):
        yield part, query_batch(queries, part, max_len, device)


def query_parts(queries: Queries, max_len: int | None, batch_users: int = 512) -> Iterator[slice]:
    """Slices of neighbouring queries, whose events together fit into a batch, all with times or all without."""
    lengths = np.asarray(queries.ends) - np.asarray(queries.starts)
    most = max(QUERY_TOKENS, EVENTS_A_USER * batch_users)
    total = np.cumsum(lengths if max_len is None else np.minimum(lengths, max_len))
    changes = [] if queries.clock is None else (np.flatnonzero(np.diff(queries.clock)) + 1).tolist()
    first = 0
    for end in [*changes, len(lengths)]:
        while first < end:
            before = total[first - 1] if first else 0
            last = int(np.searchsorted(total, before + most, side="right"))
            last = min(max(last, first + 1), first + batch_users, end)
            yield slice(first, last)
            first = last


def query_batch(
    queries: Queries, part: slice, max_len: int | None, device: torch.device | str = "cpu"
) -> Batch:
    """The last `max_len` events of the queries in `part`, packed. ValueError where only some have times."""
    clock = True if queries.clock is None or not len(queries) else bool(queries.clock[part].all())
    if queries.clock is not None and clock != bool(queries.clock[part].any()):
        raise ValueError("a batch has histories with times and without; cut it by `query_parts`")
    ends = np.asarray(queries.ends[part])
    kept = ends - np.asarray(queries.starts[part])
    if max_len is not None:
        kept = np.minimum(kept, max_len)
    index, lengths = _end_to_end(ends - kept, kept), torch.from_numpy(kept)
    tokens = torch.from_numpy(np.asarray(queries.tokens[index], dtype=np.int64))
    unit = UNITS_PER_SECOND[queries.time_unit]
    batch = Batch(
        users=torch.from_numpy(np.array(queries.users[part])),
        tokens=tokens,
        times=torch.from_numpy(np.asarray(queries.times[index], dtype=np.int64) // unit),
        targets=torch.zeros_like(tokens),
        offsets=offsets_of(lengths),
        clock=clock,
        host_lengths=lengths,
    )
    return batch.to(device)


def _end_to_end(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Flat positions int64 (T,) of the pieces [start, start + length), laid end to end."""
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
