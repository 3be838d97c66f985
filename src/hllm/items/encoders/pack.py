"""How sequences lie end to end in one row, and what attention needs to know of that."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hllm.packing import Rows, fill_rows, offsets_of, positions_in_segment, segment_ids


@dataclass(eq=False)
class Pack:
    """How T tokens of one row are cut into sequences, and what attention needs to know of it.

    lengths   of the N sequences in order. If `prefix` > 0, the first sequence is the prefix, of that
              length: every other sequence continues from it and sees all of it
    device    of the tokens
    starts    int64 (N,) position id of each sequence's first token
    rows      how the tokens fall into a grid, where the caller has planned it already
    """

    lengths: list[int]
    device: torch.device
    prefix: int = 0
    starts: Tensor | None = None
    rows: Rows | None = None
    _masks: dict[tuple[bool, int | None], Tensor] = field(default_factory=dict, repr=False)
    _tiles: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @functools.cached_property
    def offsets(self) -> Tensor:
        """int32 (N + 1,) boundaries of the sequences."""
        return offsets_of(torch.tensor(self.lengths)).to(self.device, non_blocking=True)

    @functools.cached_property
    def owner(self) -> Tensor:
        """int64 (T,) sequence of each token."""
        return segment_ids(self.offsets, self.total)

    @functools.cached_property
    def positions(self) -> Tensor:
        """int64 (T,) position ids: from 0 in every sequence, or from its start."""
        own = positions_in_segment(self.offsets, self.total)
        if self.starts is not None:
            return own + self.starts.to(self.device)[self.owner]
        return own + self.prefix * (self.owner > 0) if self.prefix else own

    def tiles(self, size: int) -> Tensor:
        """int32 (n, 2): sequence and first token in it of every tile of up to `size` tokens of one sequence."""
        if size not in self._tiles:
            counts = -(-np.asarray(self.lengths) // size)
            sequence = np.repeat(np.arange(len(counts)), counts)
            first = (np.arange(len(sequence)) - np.repeat(counts.cumsum() - counts, counts)) * size
            table = torch.from_numpy(np.stack((sequence, first), axis=1).astype(np.int32))
            self._tiles[size] = table.to(self.device)
        return self._tiles[size]

    @functools.cached_property
    def runs(self) -> list[tuple[int, int, int, int]]:
        """Neighbours of one length: (first token, sequences, length, prefix tokens before each)."""
        found: list[tuple[int, int, int, int]] = []
        at = 0
        for i, length in enumerate(self.lengths):
            before = self.prefix if i else 0
            if found and found[-1][2:] == (length, before):
                found[-1] = (found[-1][0], found[-1][1] + 1, length, before)
            else:
                found.append((at, 1, length, before))
            at += length
        return found

    @functools.cached_property
    def grid(self) -> Rows:
        """The tokens in rows of equal length, several whole sequences to a row."""
        if self.rows is not None:
            return self.rows
        row = max(16, -(-max(self.lengths) // 16) * 16)
        starts, used = fill_rows(self.lengths, row)
        slots = torch.tensor(starts, device=self.device)[self.owner]
        slots = slots + positions_in_segment(self.offsets, self.total)
        segments = torch.full((used * row,), -1, device=self.device).index_copy(0, slots, self.owner)
        return Rows(slots, segments.view(used, row))

    def mask(self, causal: bool, window: int | None) -> Tensor:
        """bool (B, 1, R, prefix + R): which keys each slot of the grid sees. Empty slots see each other."""
        key = causal, window
        if key not in self._masks:
            segments = self.grid.segments  # (B, R)
            place = torch.zeros_like(segments).flatten().index_copy(0, self.grid.slots, self.positions)
            place = place.view_as(segments)
            own = segments.unsqueeze(2) == segments.unsqueeze(1)  # (B, R, R)
            if self.prefix:
                shared = (segments > 0).unsqueeze(2).expand(-1, -1, self.prefix)
                own = torch.cat((shared, own), dim=2)
                before = torch.arange(self.prefix, device=self.device).expand(len(segments), -1)
                keys = torch.cat((before, place), dim=1)
            else:
                keys = place
            ahead = place.unsqueeze(2) - keys.unsqueeze(1)  # query position - key position
            if causal:
                own = own & (ahead >= 0)
            if window is not None:
                own = own & (ahead.abs() < window)
            self._masks[key] = own.unsqueeze(1)
        return self._masks[key]

    @functools.cached_property
    def varlen(self) -> VarlenPlan:
        """Boundaries of queries and keys for the variable-length kernel."""
        if not self.prefix:
            longest = max(self.lengths)
            return VarlenPlan(self.offsets, self.offsets, longest, longest, None, None)
        lengths = torch.tensor(self.lengths)
        key_lengths = lengths + self.prefix
        key_lengths[0] = self.prefix  # the prefix itself
        key_offsets = offsets_of(key_lengths).to(self.device, non_blocking=True)
        own = key_offsets.long()[self.owner] + positions_in_segment(self.offsets, self.total)
        own = own + self.prefix * (self.owner > 0)
        copies = key_offsets[1:-1].long().unsqueeze(1) + torch.arange(self.prefix, device=self.device)
        to = torch.cat((own, copies.flatten()))  # a permutation: where each key goes
        back = torch.empty_like(to).index_copy_(0, to, torch.arange(len(to), device=self.device))
        return VarlenPlan(
            self.offsets,
            key_offsets,
            max(self.lengths),
            max(self.lengths[1:], default=0) + self.prefix,
            to,
            back,
        )


@dataclass(frozen=True, eq=False)
class VarlenPlan:
    """int32 (N + 1,) boundaries, longest lengths, and the permutation that puts the prefix before each text."""

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    to: Tensor | None
    back: Tensor | None


def pack_rows(rows: Rows) -> Pack:
    """The pack of histories laid out as `rows`; reading their lengths waits for the device once."""
    owners = rows.segments.flatten()[rows.slots]
    lengths = torch.unique_consecutive(owners, return_counts=True)[1].tolist()
    return Pack(lengths, rows.slots.device, rows=rows)
