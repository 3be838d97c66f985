"""Ragged sequences laid end to end: a flat array plus offsets, never a padded matrix.

Sequence `u` of a packed array is `flat[offsets[u]:offsets[u + 1]]`. Everything that
handles histories (data, models, evaluation) uses this one layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """T packed tokens in a grid of B rows of R slots, several whole sequences to a row.

    slots     int64 (T,)    slot of each token in the flattened grid; neighbours stay neighbours
    segments  int64 (B, R)  sequence number in each slot, -1 where it is empty
    bounds    int32 (2, T)  where each token's sequence begins and ends among the T, a left-over token's own place;
                            None: not known. Where they are, attention goes by them (kernels/attention.py)
    longest   length of the longest sequence that there may be, where `bounds` are known
    order     int64 (B, R)  None: the order of slots. Slot i sees slot j of its sequence if order_j < order_i, or
                            i = j, or the two are equal and `mutual` is set: causal histories, baskets of events
                            that happen at once, and candidates that see a history but not each other
    """

    slots: Tensor
    segments: Tensor
    order: Tensor | None = None
    mutual: bool = False
    bounds: Tensor | None = None
    longest: int | None = None

    def to(self, device: torch.device | str) -> Rows:
        """Return the rows with every tensor on `device`."""
        slots, segments = (x.to(device, non_blocking=True) for x in (self.slots, self.segments))
        order, bounds = (
            None if x is None else x.to(device, non_blocking=True) for x in (self.order, self.bounds)
        )
        return replace(self, slots=slots, segments=segments, order=order, bounds=bounds)


@dataclass(frozen=True)
class Signals:
    """What a user model may read of events beside the items' vectors.

    times       int64 (T,)  whole seconds
    clock       False: `times` are no clock times (an anonymous history without any), and say nothing
    query_time  int64 (U,)  time of the event to be predicted, where it is known
    features    {name: (T, ...)}
    """

    times: Tensor
    clock: bool = True
    query_time: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Events:
    """Events of a whole batch of which a rank has a part: what its loss compares its own with.

    users            int64 (E,)  dataset rows, -1 = left over
    inputs, targets  int64 (E,)  rows as in `ItemView`
    """

    users: Tensor
    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class ItemView:
    """Which items a step needs: what the source encodes, once each, and where events find their items among them.

    tokens     int64 (M,)  distinct; the first `n_classes` are the classes of the loss
    valid      bool (M,)   None: all of them; else False where fixed shapes leave an entry unused
    inputs     int64 (T,)  row of each event's item among `tokens`
    targets    int64 (T,)  row of each event's target, -1 = nothing to predict
    negatives  int64 (K,)  rows drawn as negatives, repeats kept; None where the loss draws none
    log_q      float32 (M,)  log of each item's probability to be a negative; None: scores are not corrected
    everyone   the whole batch's events where `inputs` and `targets` are a rank's part of them; None: they are all
    """

    tokens: Tensor
    inputs: Tensor
    targets: Tensor
    n_classes: int
    valid: Tensor | None = None
    negatives: Tensor | None = None
    log_q: Tensor | None = None
    everyone: Events | None = None


@dataclass(frozen=True)
class Batch:
    """Whole histories, or windows of them, laid end to end: T tokens of U users.

    users          int64 (U,)     dataset rows, unique across ranks
    tokens         int64 (T,)     item tokens, never 0 (padding does not occur)
    times          int64 (T,)     whole seconds
    targets        int64 (T,)     next item's token; 0 = nothing to predict here
    offsets        int32 (U + 1,) sequence boundaries, offsets[0] = 0, offsets[U] = T
    query_time     int64 (U,)     time of the event to be predicted, where it is known
    clock          whether `times` are clock times
    n_targets      float32 ()     targets of the global batch, over all ranks: what the loss is divided by
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
    clock: bool = True
    n_targets: Tensor | None = None
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
            n_targets=None if self.n_targets is None else move(self.n_targets),
            token_features={k: move(v) for k, v in self.token_features.items()},
            user_features={k: move(v) for k, v in self.user_features.items()},
            host_lengths=self.lengths,
            rows=None if self.rows is None else self.rows.to(device),
        )

    @property
    def lengths(self) -> Tensor:
        """Sequence lengths int64 (U,) on the CPU."""
        if self.host_lengths is not None:
            return self.host_lengths
        return lengths_of(self.offsets).long().cpu()

    @property
    def signals(self) -> Signals:
        """What user models may read beside the items."""
        return Signals(self.times, self.clock, self.query_time, self.token_features)

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
    if len(lengths) == 1:  # a request for one user: a dozen small operations less
        return torch.arange(int(starts), int(starts) + int(lengths), device=device)
    total = int(lengths.sum())
    offsets = offsets_of(lengths).to(device, non_blocking=True)
    return starts.to(device, non_blocking=True)[segment_ids(offsets, total)] + positions_in_segment(
        offsets, total
    )


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
    if lengths.numel() == 1 and n_rows is None and batch.n_tokens <= row:  # a request for one user
        slots = torch.arange(batch.n_tokens, device=batch.tokens.device)
        return Rows(
            slots, torch.where(torch.arange(row, device=slots.device) < batch.n_tokens, 0, -1).view(1, row)
        )
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


def one_row(batch: Batch, n_tokens: int, longest: int) -> Rows:
    """The sequences of a batch as they lie, in one row of `n_tokens` slots, with the bounds of each.

    No sequence is longer than `longest`. Nothing has to be planned: what attends by bounds needs no rows.
    """
    t, device = batch.n_tokens, batch.tokens.device
    ids, own = segment_ids(batch.offsets, t), torch.arange(n_tokens, device=device)
    bounds = torch.stack((own, own + 1)).int()
    bounds[:, :t] = torch.stack((batch.offsets[ids], batch.offsets[ids + 1]))
    segments = torch.full((1, n_tokens), -1, dtype=torch.long, device=device)
    segments[0, :t] = ids
    return Rows(own, segments, bounds=bounds, longest=longest)


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


def padded(batch: Batch, n_tokens: int, rows: Rows) -> Batch:
    """`batch` with T = U = `n_tokens`, so that shapes repeat: the same batch to every model and loss.

    What is left over is users without events, and tokens in empty slots of `rows` that have nothing to predict.
    The grid of `rows`, made for the batch, has `n_tokens` slots or more.
    """
    t = batch.n_tokens
    slots = rows.slots
    if len(slots) < n_tokens:
        # Every slot keeps at most one token: left-over tokens take the empty ones.
        empty = torch.argsort((rows.segments.flatten() >= 0).to(torch.int8), stable=True)
        slots = torch.cat((slots, empty[: n_tokens - t]))
    more = n_tokens - batch.n_users
    # Left-over users have no events: all tokens, left-over ones too, lie before where they would begin. Left-over
    # tokens belong to none of the sequences in `rows`, which is what models and losses go by.
    ends = batch.offsets[-1:].expand(more)
    return replace(
        batch,
        users=_longer(batch.users, n_tokens),
        tokens=_longer(batch.tokens, n_tokens),
        times=_longer(batch.times, n_tokens),
        targets=_longer(batch.targets, n_tokens),
        offsets=torch.cat((batch.offsets, ends)),
        query_time=None if batch.query_time is None else _longer(batch.query_time, n_tokens),
        token_features={k: _longer(v, n_tokens) for k, v in batch.token_features.items()},
        user_features={k: _longer(v, n_tokens) for k, v in batch.user_features.items()},
        host_lengths=torch.cat((batch.lengths, torch.zeros(more, dtype=torch.long))),
        rows=replace(rows, slots=slots),
    )


def _longer(x: Tensor, n: int, fill: int = 0) -> Tensor:
    """`x` (m, ...) followed by zeros, or another number: (n, ...)."""
    return torch.cat((x, x.new_full((n - x.shape[0], *x.shape[1:]), fill)))


def part_of(batch: Batch, view: ItemView, rank: int, world: int) -> tuple[Batch, ItemView]:
    """What `rank` of `world` takes of a batch and its view: whole sequences side by side, about as many tokens each.

    A part may be empty. `n_targets` and the items of the view stay those of the whole batch, and `view.everyone` keeps
    its events, so that the sum of the parts' losses and gradients is the whole batch's.
    """
    lengths = batch.lengths
    ends = lengths.cumsum(0)
    middles = ends - lengths / 2
    total = int(lengths.sum())
    first, stop = (int(torch.searchsorted(middles, total * r / world)) for r in (rank, rank + 1))
    if rank == world - 1:
        stop = batch.n_users
    tokens = _tokens_of(ends, first, stop)
    count = (batch.targets > 0).sum().float() if batch.n_targets is None else batch.n_targets
    part = replace(_cut(batch, slice(first, stop), tokens), n_targets=count)
    whose = batch.users[segment_ids(batch.offsets, batch.n_tokens)].to(view.inputs.device)
    everyone = Events(whose, view.inputs, view.targets)
    return part, replace(view, inputs=view.inputs[tokens], targets=view.targets[tokens], everyone=everyone)


def split(batch: Batch, n_tokens: int) -> Iterator[Batch]:
    """Whole sequences side by side, of at most `n_tokens` or one sequence at a time; none of a batch without any."""
    ends = batch.lengths.cumsum(0)
    first = 0
    while first < batch.n_users:
        before = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(torch.searchsorted(ends, before + n_tokens, right=True)))
        yield _cut(batch, slice(first, stop), _tokens_of(ends, first, stop))
        first = stop


def _tokens_of(ends: Tensor, first: int, stop: int) -> slice:
    """Where the tokens of the sequences [first, stop) lie, which end at `ends` int64 (U,)."""
    start = int(ends[first - 1]) if first else 0
    return slice(start, max(start, int(ends[stop - 1]) if stop else 0))


def _cut(batch: Batch, users: slice, tokens: slice) -> Batch:
    """The sequences `users` of a batch, whose tokens are `tokens`."""
    own = batch.lengths[users]
    return replace(
        batch,
        users=batch.users[users],
        tokens=batch.tokens[tokens],
        times=batch.times[tokens],
        targets=batch.targets[tokens],
        offsets=offsets_of(own).to(batch.offsets.device, non_blocking=True),
        query_time=None if batch.query_time is None else batch.query_time[users],
        token_features={k: v[tokens] for k, v in batch.token_features.items()},
        user_features={k: v[users] for k, v in batch.user_features.items()},
        host_lengths=own,
        rows=None,
    )


def padded_view(view: ItemView, n_tokens: int, n_events: int) -> ItemView:
    """`view` of a batch that is padded to `n_tokens`, its part of a whole one of at most `n_events`: to be repeated."""
    everyone = view.everyone
    if everyone is not None:
        values = (everyone.users, -1), (everyone.inputs, 0), (everyone.targets, -1)
        everyone = Events(*(_longer(x, n_events, fill) for x, fill in values))
    inputs, targets = _longer(view.inputs, n_tokens), _longer(view.targets, n_tokens, -1)
    return replace(view, inputs=inputs, targets=targets, everyone=everyone)
