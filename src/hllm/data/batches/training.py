"""Training batches: windows of histories under a budget of tokens.

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

from hllm.data.batches.windows import Windows as Windows
from hllm.data.batches.windows import every_target, joined, pieces
from hllm.packing import Batch, flat_index, offsets_of

if TYPE_CHECKING:
    from hllm.data.dataset import Histories


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


@dataclass(frozen=True)
class Plan:
    """An epoch's windows, and the slice of them that makes each batch."""

    windows: Windows
    slices: list[slice]

    def __len__(self) -> int:
        return len(self.slices)


class TrainLoader:
    """Training batches of one dataset, assembled on `device` from its packed arrays.

    `plan(e)` plans epoch `e`, and `batches(plan, skip)` yields its batches after the first `skip`, each a
    `Batch` whose targets are the tokens one step ahead.
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

    def plan(self, epoch: int) -> Plan:
        """The epoch's windows and how they fall into batches."""
        parts = [
            self.windows(self.histories, self.max_len, self.seed, epoch * self.passes + p)
            for p in range(self.passes)
        ]
        windows = parts[0] if len(parts) == 1 else joined(parts)
        return Plan(windows, budget_slices(windows.lengths - 1, self.batch_tokens))

    def batches(self, plan: Plan, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of `plan`, without the first `skip`."""
        for part in plan.slices[skip:]:
            yield self.assemble(plan.windows.take(part))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Plan an epoch and yield its batches, without the first `skip`."""
        return self.batches(self.plan(epoch), skip)

    def assemble(self, windows: Windows) -> Batch:
        """Inputs are all events of a window but the last, targets all but the first.

        Nothing waits for the device: while it works on a step, the next batch is on its way.
        """
        lengths = torch.from_numpy(windows.lengths - 1)
        index = flat_index(torch.from_numpy(windows.starts), lengths, self.device)
        return Batch(
            users=torch.from_numpy(windows.users).to(self.device, non_blocking=True),
            tokens=self.tokens[index].long(),
            times=self.times[index],
            targets=self.tokens[index + 1].long(),
            offsets=offsets_of(lengths).to(self.device, non_blocking=True),
            n_targets=torch.tensor(float(lengths.sum())).to(self.device, non_blocking=True),
            host_lengths=lengths,
        )
