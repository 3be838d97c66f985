"""Ragged sequences laid end to end: a flat array plus offsets, never a padded matrix.

Sequence `u` of a packed array is `flat[offsets[u]:offsets[u + 1]]`. Everything that
handles histories (data, models, evaluation) uses this one layout; `pad` and `unpad`
are for the few places, such as the portable attention, that need rectangles.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """T packed tokens in a grid of B rows of R slots, several whole sequences to a row.

    slots     int64 (T,)    slot of each token in the flattened grid; neighbours stay neighbours
    segments  int64 (B, R)  sequence number in each slot, -1 where it is empty
    """

    slots: Tensor
    segments: Tensor


@dataclass(frozen=True)
class Batch:
    """Whole histories, or windows of them, laid end to end: T tokens of U users.

    users          int64 (U,)     dataset rows, unique across ranks
    tokens         int64 (T,)     item tokens, never 0 (padding does not occur)
    times          int64 (T,)     whole seconds
    targets        int64 (T,)     next item's token; 0 = nothing to predict here
    offsets        int32 (U + 1,) sequence boundaries, offsets[0] = 0, offsets[U] = T
    query_time     int64 (U,)     time of the event to be predicted, where it is known
    token_features {name: (T, ...)}, user_features {name: (U, ...)}
    host_lengths   lengths on the CPU, kept by `to` so that planning needs no device sync
    rows           how the tokens fall into rows for attention, where that is planned already
    """

    users: Tensor
    tokens: Tensor
    times: Tensor
    targets: Tensor
    offsets: Tensor
    query_time: Tensor | None = None
    token_features: dict[str, Tensor] = field(default_factory=dict)
    user_features: dict[str, Tensor] = field(default_factory=dict)
    host_lengths: Tensor | None = None
    rows: Rows | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on `device`."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return replace(
            self,
            users=move(self.users),
            tokens=move(self.tokens),
            times=move(self.times),
            targets=move(self.targets),
            offsets=move(self.offsets),
            query_time=None if self.query_time is None else move(self.query_time),
            token_features={k: move(v) for k, v in self.token_features.items()},
            user_features={k: move(v) for k, v in self.user_features.items()},
            host_lengths=self.lengths,
            rows=None,
        )

    @property
    def lengths(self) -> Tensor:
        """Sequence lengths int64 (U,) on the CPU."""
        if self.host_lengths is not None:
            return self.host_lengths
        return lengths_of(self.offsets).long().cpu()

    @property
    def n_users(self) -> int:
        return int(self.users.shape[0])

    @property
    def n_tokens(self) -> int:
        return int(self.tokens.shape[0])


def lengths_of(offsets: Tensor) -> Tensor:
    """Lengths (U,) of the sequences that `offsets` (U + 1,) delimits."""
    return offsets[1:] - offsets[:-1]


def offsets_of(lengths: Tensor) -> Tensor:
    """Offsets int32 (U + 1,) of sequences with these `lengths` (U,)."""
    offsets = torch.zeros(lengths.shape[0] + 1, dtype=torch.int32, device=lengths.device)
    offsets[1:] = lengths.cumsum(0)
    return offsets


def segment_ids(offsets: Tensor, total: int) -> Tensor:
    """Sequence number int64 (T,) of every position; `total` = T spares a device sync."""
    lengths = lengths_of(offsets).long()
    ids = torch.arange(lengths.shape[0], device=offsets.device)
    return torch.repeat_interleave(ids, lengths, output_size=total)


def positions_in_segment(offsets: Tensor, total: int) -> Tensor:
    """Position int64 (T,) of every element inside its own sequence, from 0."""
    starts = offsets[:-1].long()[segment_ids(offsets, total)]
    return torch.arange(total, device=offsets.device) - starts


def flat_index(starts: Tensor, lengths: Tensor, device: torch.device | str) -> Tensor:
    """Flat positions int64 (T,) of the pieces [start, start + length), laid end to end."""
    total = int(lengths.sum())
    offsets = offsets_of(lengths).to(device)
    return starts.to(device)[segment_ids(offsets, total)] + positions_in_segment(offsets, total)


def last_positions(offsets: Tensor) -> Tensor:
    """Flat index int64 (U,) of each sequence's last element. Sequences must not be empty."""
    return offsets[1:].long() - 1


def pad(flat: Tensor, offsets: Tensor, length: int | None = None, value: float = 0) -> Tensor:
    """Packed (T, ...) to right-padded (U, length, ...); `length` defaults to the longest."""
    lengths = lengths_of(offsets)
    if length is None:
        length = int(lengths.max()) if lengths.numel() else 0
    out = flat.new_full((lengths.shape[0], length, *flat.shape[1:]), value)
    total = flat.shape[0]
    out[segment_ids(offsets, total), positions_in_segment(offsets, total)] = flat
    return out


def unpad(padded: Tensor, offsets: Tensor) -> Tensor:
    """Inverse of `pad`: (U, length, ...) back to packed (T, ...)."""
    total = int(offsets[-1])
    return padded[segment_ids(offsets, total), positions_in_segment(offsets, total)]


def make_rows(batch: Batch, row: int | None = None, n_rows: int | None = None) -> Rows:
    """Pack the sequences of a batch into rows of `row` slots (default: the longest, rounded up to 16).

    `n_rows` fixes the number of rows, so that shapes repeat; ValueError if they do not suffice.
    Planned on the CPU from the lengths, then copied over: the device is never waited for.
    """
    lengths = batch.lengths
    longest = int(lengths.max()) if lengths.numel() else 1
    row = row or max(16, -(-longest // 16) * 16)
    starts, used = fill_rows(lengths.tolist(), row)
    if n_rows is not None and used > n_rows:
        raise ValueError(f"{used} rows of {row} needed, {n_rows} given")
    device, total = batch.tokens.device, batch.n_tokens
    ids = segment_ids(batch.offsets, total)
    first = torch.tensor(starts, dtype=torch.long).to(device, non_blocking=True)
    slots = first[ids] + positions_in_segment(batch.offsets, total)
    segments = torch.full(((n_rows or used) * row,), -1, dtype=torch.long, device=device)
    segments[slots] = ids
    return Rows(slots, segments.view(-1, row))


def fill_rows(lengths: list[int], row: int) -> tuple[list[int], int]:
    """Best-fit decreasing bin packing; returns the start slot of every sequence and the rows used.

    Free capacities are kept as the bits of one integer, so the best row is found in one operation.
    """
    starts = [0] * len(lengths)
    with_room: list[list[int]] = [[] for _ in range(row + 1)]  # rows by free capacity
    bits, used = 0, 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[i]
        fitting = bits >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            r = with_room[room].pop()
            if not with_room[room]:
                bits &= ~(1 << room)
        else:
            r, room, used = used, row, used + 1
        starts[i] = r * row + row - room
        with_room[room - length].append(r)
        bits |= 1 << (room - length)
    return starts, max(used, 1)
