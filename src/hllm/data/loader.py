"""Batches: token-budget windows for training, whole histories before a target for evaluation.

Training takes, per user and epoch, one random contiguous window (protocol.md, "Windows").
A batch is a budget of tokens, not of users: windows are laid end to end, without padding.
Everything random comes from (seed, epoch), so a resumed run sees the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hllm.data.schema import UNITS_PER_SECOND
from hllm.data.windows import Windows as Windows
from hllm.data.windows import every_target, joined, pieces
from hllm.packing import Batch, offsets_of, positions_in_segment, segment_ids

QUERY_TOKENS = (
    1 << 15
)  # events of a batch to rank for: with long histories, what bounds the memory of ranking

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset, Histories


def random_windows(histories: Histories, max_len: int | None, seed: int, epoch: int) -> Windows:
    """One window of at most `max_len` + 1 events per user, in shuffled user order.

    The first event of a window is input only, so a window yields at most `max_len` targets.
    Users with fewer than two training events have nothing to predict and are left out.
    """
    rng = np.random.default_rng([seed, epoch])
    offsets = np.asarray(histories.offsets)
    sizes = np.diff(offsets)
    rows = rng.permutation(np.flatnonzero(sizes >= 2))
    lengths = sizes[rows] if max_len is None else np.minimum(sizes[rows], max_len + 1)
    shift = (rng.random(len(rows)) * (sizes[rows] - lengths + 1)).astype(np.int64)
    return Windows(np.asarray(histories.users)[rows], offsets[rows] + shift, lengths)


def budget_slices(lengths: np.ndarray, batch_tokens: int) -> list[slice]:
    """Cut consecutive sequences into batches of at most `batch_tokens` tokens (one sequence at least)."""
    ends = np.cumsum(lengths)
    slices, first, spent = [], 0, 0
    while first < len(lengths):
        last = max(int(np.searchsorted(ends, spent + batch_tokens, side="right")), first + 1)
        slices.append(slice(first, last))
        first, spent = last, int(ends[last - 1])
    return slices


class TrainLoader:
    """Training batches of one dataset, assembled on `device` from its packed arrays.

    `epoch(e, skip)` yields the batches of epoch `e` after the first `skip`, each a `Batch` whose
    targets are the tokens one step ahead.
    """

    def __init__(
        self,
        histories: Histories,
        max_len: int | None,
        batch_tokens: int,
        seed: int,
        device: torch.device | str = "cpu",
        windows: str = "random",
        passes: int = 1,
    ) -> None:
        self.passes = passes
        self.histories = histories
        self.windows = {"random": random_windows, "pieces": pieces, "every": every_target}[windows]
        self.max_len = max_len
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.device = torch.device(device)
        self.tokens = torch.from_numpy(np.array(histories.tokens)).to(self.device)
        self.times = torch.from_numpy(np.array(histories.times)).to(self.device)

    def longest_window(self) -> int:
        """The most inputs a window can have."""
        longest = int(np.diff(np.asarray(self.histories.offsets)).max()) - 1
        return longest if self.max_len is None else min(longest, self.max_len)

    def plan(self, epoch: int) -> tuple[Windows, list[slice]]:
        """The epoch's windows and how they fall into batches."""
        parts = [
            self.windows(self.histories, self.max_len, self.seed, epoch * self.passes + p)
            for p in range(self.passes)
        ]
        windows = parts[0] if len(parts) == 1 else joined(parts)
        return windows, budget_slices(windows.lengths - 1, self.batch_tokens)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the epoch's batches, without the first `skip`."""
        windows, slices = self.plan(epoch)
        for part in slices[skip:]:
            yield self.assemble(windows.take(part))

    def assemble(self, windows: Windows) -> Batch:
        """Inputs are all events of a window but the last, targets all but the first."""
        lengths = torch.from_numpy(windows.lengths - 1)
        index = _flat_index(torch.from_numpy(windows.starts), lengths, self.device)
        return Batch(
            users=torch.from_numpy(windows.users).to(self.device),
            tokens=self.tokens[index].long(),
            times=self.times[index],
            targets=self.tokens[index + 1].long(),
            offsets=offsets_of(lengths).to(self.device),
            host_lengths=lengths,
        )


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
    index = _flat_index(ends - lengths, lengths, "cpu").numpy()
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


def _flat_index(starts: Tensor, lengths: Tensor, device: torch.device | str) -> Tensor:
    """Flat positions int64 (T,) of the pieces [start, start + length), laid end to end."""
    total = int(lengths.sum())
    offsets = offsets_of(lengths).to(device)
    return starts.to(device)[segment_ids(offsets, total)] + positions_in_segment(offsets, total)
