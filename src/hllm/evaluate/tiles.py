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


@dataclass(frozen=True)
class Pairs:
    """Pairs of user and candidate, grouped by the tile that the candidate is in.

    rows     int64 (P,)  users of the block
    columns  int64 (P,)  places of the candidates inside their tiles
    edges    where the pairs of each tile begin, and where the last end
    """

    rows: Tensor
    columns: Tensor
    edges: list[int]

    def to(self, device: torch.device) -> Pairs:
        """The same on a device."""
        return Pairs(self.rows.to(device), self.columns.to(device), self.edges)

    def of(self, tile: int) -> tuple[Tensor, Tensor] | None:
        """Rows and columns of the pairs in a tile; None without any."""
        first, stop = self.edges[tile : tile + 2]
        return None if first == stop else (self.rows[first:stop], self.columns[first:stop])


def by_tile(rows: np.ndarray, positions: np.ndarray, size: int, n_scored: int) -> Pairs:
    """Pairs int64 (P,), (P,) of row and position among `n_scored`, for tiles of `size`; made on the CPU."""
    n_tiles = -(-n_scored // size)
    if n_tiles == 1:
        return Pairs(torch.from_numpy(rows), torch.from_numpy(positions), [0, len(rows)])
    # Grouping is enough, and integers of 8 and 16 bits are sorted without comparing them.
    wide = positions // size
    tiles = wide.astype(np.min_scalar_type(n_tiles))
    order = np.argsort(tiles, kind="stable")
    edges = np.searchsorted(tiles[order], np.arange(n_tiles + 1)).tolist()
    columns = positions - wide * size
    return Pairs(torch.from_numpy(rows[order]), torch.from_numpy(columns[order]), edges)


def tile_size(n_users: int, device: torch.device, tile_items: int | None = None) -> int:
    """Candidates a tile for `n_users`: `tile_items`, or what `TILE_SCORES` has room for."""
    size = tile_items or max(1, TILE_SCORES.get(device.type, TILE_SCORES["cpu"]) // max(1, n_users))
    if device.type == "cuda" and size > ALIGNED:  # else cuBLAS takes products several times slower
        size -= size % ALIGNED
    return size


class Block:
    """The scores of one block of users. A single tile is made once and kept.

    hidden  pairs to hide, by tiles of `size`
    size    candidates a tile
    """

    def __init__(
        self,
        ranker: Ranker,
        batch: Batch,
        candidates: Candidates,
        hidden: Pairs,
        size: int,
    ) -> None:
        self.ranker = ranker
        self.n_users = batch.n_users
        self.device = batch.users.device
        self.candidates = candidates
        self.size = size
        self.starts = range(0, len(candidates.scored), size)
        self.hidden = hidden.to(self.device)
        self.hollow = np.searchsorted(candidates.holes, [*self.starts, len(candidates.scored)])
        self.holes = torch.from_numpy(candidates.holes).to(self.device)
        self.query = ranker.query(batch)  # after the copies, which would wait for it
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
            hollow, hidden = slice(*self.hollow[i : i + 2]), self.hidden.of(i)
            holes = self.holes[hollow] - first if hollow.stop > hollow.start else None
            if not self.finite:
                self._look(scores if holes is None else scores.index_fill_(1, holes, 0.0))
            if hidden is not None:
                scores[hidden] = -torch.inf
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
