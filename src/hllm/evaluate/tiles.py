"""The scores of a block of users, tile by tile: a tile is all that is ever held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from hllm.errors import HLLMError

if TYPE_CHECKING:
    from hllm.evaluate.candidates import Candidates
    from hllm.packing import Batch

# Scores held at once, by device: 4 MiB of float32 for a CPU, which stay in its caches while they are looked at
# several times; 128 MiB for a GPU, which wants large products.
TILE_SCORES = {"cpu": 1 << 20, "cuda": 1 << 25}
ALIGNED = 64  # items of a tile, a multiple of it


class Ranker(Protocol):
    """What can be ranked by: trained models and baselines alike.

    One that keeps a table of items may also have

        score_range(query, first, stop)  the scores of tokens first..stop - 1, read without copying their vectors,
                                         in memory that the caller may change
        all_finite(query)                True only if no score can be NaN or infinite, so that none is looked at
    """

    def query(self, batch: Batch) -> Tensor:
        """One row a user (U, ...): whatever `score` needs to know of the histories in `batch`."""

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m) of the items `tokens` int64 (m,), all different."""


@dataclass(frozen=True)
class Tile:
    """Scores float32 (U, m) of the candidates from position `first` on; hidden ones are -inf."""

    first: int
    scores: Tensor


class Block:
    """The scores of one block of users. A single tile is made once and kept.

    rows, positions  int64 (P,) pairs to hide
    tile_items       candidates a tile; None = by memory
    """

    def __init__(
        self,
        ranker: Ranker,
        batch: Batch,
        candidates: Candidates,
        rows: np.ndarray,
        positions: np.ndarray,
        tile_items: int | None,
    ) -> None:
        self.ranker = ranker
        self.n_users = batch.n_users
        self.device = batch.users.device
        self.candidates = candidates
        self.query = ranker.query(batch)
        room = TILE_SCORES.get(self.device.type, TILE_SCORES["cpu"])
        self.size = tile_items or max(1, room // max(1, self.n_users))
        if (
            self.device.type == "cuda" and self.size > ALIGNED
        ):  # else cuBLAS takes products several times slower
            self.size -= self.size % ALIGNED
        self.starts = range(0, len(candidates.scored), self.size)
        edges = [*self.starts, len(candidates.scored)]
        self.hidden, self.hollow = np.array([0, len(rows)]), np.searchsorted(candidates.holes, edges)
        if len(self.starts) != 1:  # every tile finds its own side by side
            order = np.argsort(positions, kind="stable")
            rows, positions = rows[order], positions[order]
            self.hidden = np.searchsorted(positions, edges)
        self.rows = torch.from_numpy(rows).to(self.device)
        self.positions = torch.from_numpy(positions).to(self.device)
        self.holes = torch.from_numpy(candidates.holes).to(self.device)
        self.bad: Tensor | None = None
        self.finite = bool(getattr(ranker, "all_finite", _unknown)(self.query))
        self.kept: Tile | None = None

    def tiles(self) -> Iterator[Tile]:
        """All tiles in order."""
        for i, first in enumerate(self.starts):
            if self.kept is not None:
                yield self.kept
                continue
            scores = self._scores(first, min(first + self.size, len(self.candidates.scored)))
            hollow, hidden = slice(*self.hollow[i : i + 2]), slice(*self.hidden[i : i + 2])
            holes = self.holes[hollow] - first if hollow.stop > hollow.start else None
            if not self.finite:
                self._look(scores if holes is None else scores.index_fill_(1, holes, 0.0))
            if hidden.stop > hidden.start:
                scores[self.rows[hidden], self.positions[hidden] - first] = -torch.inf
            if holes is not None:
                scores.index_fill_(1, holes, -torch.inf)
            tile = Tile(first, scores)
            if len(self.starts) == 1:
                self.kept = tile
            yield tile

    def scores_at(self, positions: np.ndarray) -> Tensor:
        """Scores float32 (U, m) of distinct `positions` int64 (m,), hidden or not, from one product."""
        tokens = torch.from_numpy(self.candidates.scored[positions]).to(self.device)
        return self._checked(lambda: self.ranker.score(self.query, tokens), len(tokens)).float()

    def _scores(self, first: int, stop: int) -> Tensor:
        """Scores float32 (U, stop - first) in memory of our own."""
        by_range: Callable[..., Tensor] | None = getattr(self.ranker, "score_range", None)
        start = self.candidates.first
        if by_range is not None and start is not None:
            made = self._checked(lambda: by_range(self.query, start + first, start + stop), stop - first)
            return made.float()
        tokens = self.candidates.tokens(first, stop, self.device)
        scores = self._checked(lambda: self.ranker.score(self.query, tokens), stop - first)
        return scores.to(torch.float32, memory_format=torch.contiguous_format, copy=True)

    def _checked(self, make: Callable[[], Tensor], m: int) -> Tensor:
        if torch.is_autocast_enabled(
            self.device.type
        ):  # full precision all the same: narrow scores would tie
            with torch.autocast(self.device.type, enabled=False):
                scores = make()
        else:
            scores = make()
        expected = (self.n_users, m)
        if tuple(scores.shape) != expected or scores.dtype not in (torch.float32, torch.float64):
            raise HLLMError(
                f"{type(self.ranker).__name__}.score gave {scores.dtype} {tuple(scores.shape)}, "
                f"not float32 {expected}"
            )
        return scores

    def _look(self, scores: Tensor) -> None:
        if scores.numel():
            low, high = torch.aminmax(scores)
            bad = ~(torch.isfinite(low) & torch.isfinite(high))
            self.bad = bad if self.bad is None else self.bad | bad

    def check(self) -> None:
        """Raise HLLMError if any score so far was not a finite number."""
        if self.bad is not None and bool(self.bad):
            raise HLLMError(
                f"{type(self.ranker).__name__} gives scores that are NaN or infinite, so nothing can be "
                "ranked; its weights or item vectors are damaged: train again, with a lower learning_rate"
            )


def _unknown(query: Tensor) -> bool:
    return False
