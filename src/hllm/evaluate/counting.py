"""Ranks of held-out items, by counting who scores as much, in one pass over the tiles.

The target's score is needed before its own tile comes. It is made ahead, by a product of a tile's shape, and
compared with what the tile then says: in the same arithmetic both have the same bits, and the counts stand. Where
they differ, the tiles are gone through once more with the score that the target's own tile gave.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hllm import kernels
from hllm.evaluate.tiles import Block, Tile, by_tile
from hllm.hardware import is_out_of_memory


@dataclass(frozen=True)
class TargetRanks:
    """ranks int64 (Q,), 0 where the target is hidden or no candidate; tied bool (Q,): another
    candidate has exactly the target's score."""

    ranks: np.ndarray
    tied: np.ndarray


class TargetCount:
    """Counts, for each user, the candidates that score more than, and as much as, the target.

    positions  int64 (U,) of the targets, -1 where one is no candidate
    """

    def __init__(self, block: Block, positions: np.ndarray) -> None:
        self.block = block
        users = np.flatnonzero(positions >= 0)
        positions = positions[users]
        self.targets = by_tile(users, positions, block.size, len(block.candidates.scored)).to(block.device)
        self._begin()
        if len(block.starts) == 1:
            self._read(next(block.tiles()))
            self.assumed = self._own()
            self.own.clear()
        else:
            self.assumed = self._ahead(users, positions)

    def _begin(self) -> None:
        self.at_least = torch.zeros(self.block.n_users, dtype=torch.int64, device=self.block.device)
        self.more = torch.zeros_like(self.at_least)
        self.own: list[Tensor] = []  # the targets' scores, as their tiles come

    def _ahead(self, users: np.ndarray, positions: np.ndarray) -> Tensor:
        """Scores (U,) of the targets of `users`, each from a product with as many items as a tile has."""
        block = self.block
        score = self._nothing()
        wanted, places = np.unique(positions, return_inverse=True)
        for first in range(0, len(wanted), block.size):
            some = wanted[first : first + block.size]
            spare = np.ones(block.size, dtype=bool)
            spare[some[some < block.size]] = False
            others = np.flatnonzero(spare)[: block.size - len(some)]
            mine = np.flatnonzero((places >= first) & (places < first + block.size))
            rows = torch.from_numpy(users[mine]).to(block.device)
            columns = torch.from_numpy(places[mine] - first).to(block.device)
            score[rows] = block.scores_at(np.concatenate([some, others]))[rows, columns]
        return score

    def _nothing(self) -> Tensor:
        return torch.full((self.block.n_users,), -torch.inf, device=self.block.device)

    def _read(self, tile: Tile) -> None:
        mine = self.targets.of(tile.first // self.block.size)
        if mine is not None:
            self.own.append(tile.scores[mine])

    def _own(self) -> Tensor:
        """What the tiles gave the targets (U,); -inf where one is hidden or no candidate."""
        score = self._nothing()
        if self.own:
            score[self.targets.rows] = torch.cat(self.own)
        return score

    def add(self, tile: Tile) -> None:
        """Count one tile."""
        self._read(tile)
        at_least, more = both_reaching(tile.scores, self.assumed)
        self.at_least += at_least
        self.more += more

    def result(self) -> TargetRanks:
        """What was counted, after the last tile."""
        own = self._own()
        ranked = own > -torch.inf
        if bool((ranked & (own != self.assumed)).any()):
            self.assumed = own
            self._begin()
            for tile in self.block.tiles():
                self.add(tile)
            own = self._own()
        # The target itself is left out by identity: what it was counted for in the tiles of this pass is taken off,
        # so that a tile made anew with other last bits cannot make it compete with itself.
        at_least = self.at_least - (own >= self.assumed).long()
        more = self.more - (own > self.assumed).long()
        ranks = torch.where(ranked, at_least + 1, 0)
        tied = ranked & (at_least > more)
        return TargetRanks(ranks.cpu().numpy(), tied.cpu().numpy())


def both_reaching(scores: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores of each row (U, m) are at least `floor` (U,), and how many more: int64 (U,) each."""
    if kernels.usable(scores.device) and _compiles(scores.device.type):
        from hllm.kernels import count

        return count.reaching(scores, floor)
    return reaching(scores, floor), reaching(scores, floor, above=True)


@cache
def _compiles(device: str) -> bool:
    """Whether the kernel that counts works here: tried once, and said where it does not."""
    from hllm.kernels import count

    try:
        count.reaching(torch.zeros(1, 1, device=device), torch.zeros(1, device=device))
    except Exception as err:  # compilers raise whatever they like
        if is_out_of_memory(err):
            raise
        warnings.warn(f"ranks are counted without their kernel: {err!r:.200}", stacklevel=4)
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
