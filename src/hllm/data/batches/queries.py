"""What to rank for: users with the history before a held-out event, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hllm.data.tables.schema import UNITS_PER_SECOND
from hllm.packing import Batch, flat_index, offsets_of

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

QUERY_TOKENS = (
    1 << 15
)  # events of a batch to rank for: with long histories, what bounds the memory of ranking


@dataclass(frozen=True)
class Queries:
    """What to rank for: users with the history before a held-out event. Q queries.

    The history of query i is `tokens[starts[i]:ends[i]]`, the whole of it, whatever the window.
    """

    users: np.ndarray  # int64 (Q,) dataset rows; -1 for anonymous users
    targets: np.ndarray  # int64 (Q,) tokens; 0 where nothing is held out
    starts: np.ndarray  # int64 (Q,)
    ends: np.ndarray  # int64 (Q,)
    tokens: np.ndarray  # int32 (N,)
    times: np.ndarray  # int64 (N,) in the dataset's unit
    time_unit: str = "s"

    def __len__(self) -> int:
        return len(self.users)

    def history_pairs(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """(row inside `part`, token) int64 pairs of every event in the whole histories of `part`."""
        starts, lengths = self.starts[part], self.ends[part] - self.starts[part]
        rows = np.repeat(np.arange(len(lengths)), lengths)
        flat = (
            np.arange(len(rows))
            - np.repeat(np.cumsum(lengths) - lengths, lengths)
            + np.repeat(starts, lengths)
        )
        return rows, np.asarray(self.tokens[flat], dtype=np.int64)

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
    """Queries for what comes after the whole history of the users in `rows`; no target."""
    rows = np.asarray(rows, dtype=np.int64)
    offsets = np.asarray(dataset.offsets)
    return Queries(
        users=rows,
        targets=np.zeros(len(rows), dtype=np.int64),
        starts=offsets[rows].astype(np.int64),
        ends=offsets[rows + 1].astype(np.int64),
        tokens=dataset.tokens,
        times=dataset.times,
        time_unit=dataset.meta["time_unit"],
    )


def history_queries(histories: list[list[int]], times: list[list[int]] | None = None) -> Queries:
    """Queries for anonymous users, given the tokens of their histories, oldest first."""
    lengths = np.array([len(h) for h in histories], dtype=np.int64)
    ends = np.cumsum(lengths)
    flat = np.array([t for h in histories for t in h], dtype=np.int32)
    clock = (
        np.zeros(len(flat), np.int64) if times is None else np.array([t for h in times for t in h], np.int64)
    )
    none = np.zeros(len(histories), dtype=np.int64)
    return Queries(none - 1, none, ends - lengths, ends, flat, clock)


def query_batches(
    queries: Queries, max_len: int | None, batch_users: int = 512, device: torch.device | str = "cpu"
) -> Iterator[tuple[slice, Batch]]:
    """Yield (slice of the queries, Batch of their last `max_len` events). Histories may be empty.

    A batch has at most `batch_users` queries and QUERY_TOKENS events, or one query.
    """
    for part in query_parts(queries, max_len, batch_users):
        yield part, query_batch(queries, part, max_len, device)


def query_parts(queries: Queries, max_len: int | None, batch_users: int = 512) -> Iterator[slice]:
    """Slices of neighbouring queries, whose events together fit into a batch."""
    lengths = np.asarray(queries.ends) - np.asarray(queries.starts)
    total = np.cumsum(lengths if max_len is None else np.minimum(lengths, max_len))
    first = 0
    while first < len(lengths):
        before = total[first - 1] if first else 0
        last = int(np.searchsorted(total, before + QUERY_TOKENS, side="right"))
        last = min(max(last, first + 1), first + batch_users)
        yield slice(first, min(last, len(lengths)))
        first = last


def query_batch(
    queries: Queries, part: slice, max_len: int | None, device: torch.device | str = "cpu"
) -> Batch:
    """The last `max_len` events of the queries in `part`, packed."""
    ends = torch.from_numpy(np.array(queries.ends[part]))
    lengths = ends - torch.from_numpy(np.array(queries.starts[part]))
    if max_len is not None:
        lengths = lengths.clamp(max=max_len)
    index = flat_index(ends - lengths, lengths, "cpu").numpy()
    tokens = torch.from_numpy(np.asarray(queries.tokens[index], dtype=np.int64))
    unit = UNITS_PER_SECOND[queries.time_unit]
    batch = Batch(
        users=torch.from_numpy(np.array(queries.users[part])),
        tokens=tokens,
        times=torch.from_numpy(np.asarray(queries.times[index], dtype=np.int64) // unit),
        targets=torch.zeros_like(tokens),
        offsets=offsets_of(lengths),
        host_lengths=lengths,
    )
    return batch.to(device)
