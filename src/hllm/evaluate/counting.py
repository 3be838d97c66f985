"""Ranks of held-out items, by counting who scores as much, in one pass over the tiles.

The target's score is needed before its own tile comes. It is made ahead, by a product of a tile's shape, and
compared with what the tile then says: in the same arithmetic both have the same bits, and the counts stand. Where
they differ, the tiles are gone through once more with the score that the target's own tile gave.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hllm import kernels
from hllm.evaluate.tiles import Block, Tile
from hllm.hardware import is_out_of_memory


@dataclass(frozen=True)
class TargetRanks:
    """ranks int64 (Q,), 0 where the target is hidden or no candidate; tied bool (Q,): another
    candidate has exactly the target's score."""

    ranks: np.ndarray
    tied: np.ndarray


class TargetCount:
    """Counts, for each user, the candidates that score more than, and as much as, the target."""

    def __init__(self, block: Block, positions: np.ndarray) -> None:
        self.block = block
        self.positions = torch.from_numpy(positions).to(block.device)
        self.score = torch.full((block.n_users,), -torch.inf, device=block.device)
        if len(block.starts) == 1:
            self._read(next(block.tiles()))
            self.assumed = self.score
        else:
            self.assumed = self._ahead(positions)
        self._reset()

    def _reset(self) -> None:
        self.at_least = torch.zeros(self.block.n_users, dtype=torch.int64, device=self.block.device)
        self.more = torch.zeros_like(self.at_least)

    def _ahead(self, positions: np.ndarray) -> Tensor:
        """The targets' scores (U,), each from a product with as many items as a tile has."""
        block = self.block
        score = torch.full_like(self.score, -torch.inf)
        wanted = np.unique(positions[positions >= 0])
        for first in range(0, len(wanted), block.size):
            some = wanted[first : first + block.size]
            spare = np.ones(block.size, dtype=bool)
            spare[some[some < block.size]] = False
            others = np.flatnonzero(spare)[: block.size - len(some)]
            columns = np.concatenate([some, others])
            place = np.searchsorted(some, positions)
            mine = (place < len(some)) & (some[np.minimum(place, len(some) - 1)] == positions)
            scores = block.scores_at(columns)
            column = torch.from_numpy(np.where(mine, place, 0)).to(block.device)
            score = torch.where(torch.from_numpy(mine).to(block.device), _gather(scores, column), score)
        return score

    def _columns(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """The target's column in the tile (clamped), and whether it is there: (U,), (U,)."""
        width = tile.scores.shape[1]
        column = self.positions - tile.first
        inside = (self.positions >= 0) & (column >= 0) & (column < width)
        return column.clamp(0, width - 1), inside

    def _read(self, tile: Tile) -> None:
        column, inside = self._columns(tile)
        self.score = torch.where(inside, _gather(tile.scores, column), self.score)

    def add(self, tile: Tile) -> None:
        """Count one tile."""
        self._read(tile)
        self._count(tile)

    def _count(self, tile: Tile) -> None:
        column, inside = self._columns(tile)
        # The target itself is left out by identity, so that a tile made anew with other last bits
        # cannot make it compete with itself.
        own = _gather(tile.scores, column)
        at_least, more = both_reaching(tile.scores, self.assumed)
        self.at_least += at_least - (inside & (own >= self.assumed)).long()
        self.more += more - (inside & (own > self.assumed)).long()

    def result(self) -> TargetRanks:
        """What was counted, after the last tile."""
        ranked = self.score > -torch.inf
        if bool((ranked & (self.score != self.assumed)).any()):
            self.assumed = self.score
            self._reset()
            for tile in self.block.tiles():
                self._count(tile)
        ranks = torch.where(ranked, self.at_least + 1, 0)
        tied = ranked & (self.at_least > self.more)
        return TargetRanks(ranks.cpu().numpy(), tied.cpu().numpy())


def both_reaching(scores: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores of each row (U, m) are at least `floor` (U,), and how many more: int64 (U,) each."""
    if kernels.usable(scores.device) and _compiles(scores.device.type):
        from hllm.kernels import count

        return count.reaching(scores, floor)
    return reaching(scores, floor), reaching(scores, floor, above=True)


@cache
def _compiles(device: str) -> bool:
    """Whether the kernel that counts works here: tried once."""
    from hllm.kernels import count

    try:
        count.reaching(torch.zeros(1, 1, device=device), torch.zeros(1, device=device))
    except Exception as err:  # compilers raise whatever they like
        if is_out_of_memory(err):
            raise
        return False
    return True


def reaching(scores: Tensor, floor: Tensor, above: bool = False) -> Tensor:
    """How many scores of each row (U, m) reach `floor` (U,), or lie above it: int64 (U,)."""
    compare = torch.gt if above else torch.ge
    if scores.device.type != "cpu":
        return compare(scores, floor.unsqueeze(1)).sum(1)
    # As floats, flags are made and added several times faster than as bools; sums up to 2^24 are exact.
    flags = compare(scores, floor.unsqueeze(1), out=torch.empty_like(scores))
    return sum(part.sum(1).long() for part in flags.split(1 << 24, dim=1))


def _gather(scores: Tensor, column: Tensor) -> Tensor:
    """scores[u, column[u]] for every row u."""
    return scores.gather(1, column.unsqueeze(1)).squeeze(1)
