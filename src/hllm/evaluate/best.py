"""The best k of what is scored tile by tile: exact, equal scores by token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hllm.evaluate.candidates import Candidates
from hllm.evaluate.counting import reaching
from hllm.evaluate.tiles import Tile

LAST = (1 << 32) - 1
MERGE = 1 << 12  # scores that wait at least before they are sorted into what is kept
GROUPS = 4  # groups of columns, in multiples of k, whose best scores bound the k-th best of a row


@dataclass(frozen=True)
class TopK:
    """Recommendations, one row each, by query and rank. A query may have fewer than k, or none.

    rows int64 (R,) number of the query; tokens int64 (R,); scores float32 (R,); ranks int64 (R,) from 1
    """

    rows: np.ndarray
    tokens: np.ndarray
    scores: np.ndarray
    ranks: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def make_best(n_users: int, k: int, device: torch.device) -> Best | BestOfOne:
    """What keeps the best `k` of each of `n_users`."""
    return BestOfOne(k) if n_users == 1 and device.type == "cpu" else Best(n_users, k, device)


class Best:
    """Keeps the best k of the tiles seen so far.

    Each user has a `floor`, which k scores at least reach; only what reaches it is looked at. A score and its
    position are one int64 key: the float's bits, made to order as integers do, above the negated position. So the
    largest keys are the best scores and, among equals, the lowest tokens.
    """

    def __init__(self, n_users: int, k: int, device: torch.device) -> None:
        self.k = k
        self.floor = torch.full((n_users,), torch.finfo(torch.float32).min, device=device)
        self.rows = torch.zeros(0, dtype=torch.int64, device=device)
        self.keys = self.places = self.rows  # of what is kept: by row, then by place from 0
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, tile: Tile) -> None:
        """Take what reaches the floor."""
        scores, users = tile.scores, None
        if tile.first:  # in a first tile everybody finds something
            users = (scores.amax(1) >= self.floor).nonzero().squeeze(1)
            if not len(users):
                return
            scores = scores[users]
        floor = self.floor if users is None else self.floor[users]
        if users is None or bool((reaching(scores, floor) > self.k).any()):
            floor = torch.maximum(floor, _bound(scores, self.k))
            self.floor[slice(None) if users is None else users] = floor
        rows, columns = (scores >= floor.unsqueeze(1)).nonzero(as_tuple=True)
        found = scores[rows, columns] + 0.0  # -0.0 becomes 0.0
        keys = (_ordered(found.view(torch.int32)).long() << 32) + (LAST - tile.first - columns)
        self.waiting.append((rows if users is None else users[rows], keys))
        if sum(len(r) for r, _ in self.waiting) > max(MERGE, self.k * len(self.floor)):
            self._merge()

    def _merge(self) -> None:
        """Sort what waits into what is kept, and raise the floors."""
        rows = torch.cat([self.rows, *(r for r, _ in self.waiting)])
        keys, order = torch.cat([self.keys, *(k for _, k in self.waiting)]).sort(descending=True)
        if len(self.floor) > 1:
            rows, order = rows[order].sort(stable=True)
            keys = keys[order]
        place = _places(rows, len(self.floor))
        kept = place < self.k
        self.rows, self.keys, self.places = rows[kept], keys[kept], place[kept]
        self.waiting.clear()
        last = self.places == self.k - 1
        self.floor[self.rows[last]] = _scores(self.keys[last])

    def result(self, first_row: int, candidates: Candidates) -> TopK:
        """The lists, of queries numbered from `first_row` on."""
        self._merge()
        positions = LAST - (self.keys & LAST).cpu().numpy()
        return TopK(
            (self.rows + first_row).cpu().numpy(),
            candidates.scored[positions],
            _scores(self.keys).cpu().numpy(),
            (self.places + 1).cpu().numpy(),
        )


class BestOfOne:
    """The same for one user on a CPU, where a dozen small operations would take as long as the model itself."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.positions = np.zeros(0, dtype=np.int64)
        self.scores = np.zeros(0, dtype=np.float32)

    def add(self, tile: Tile) -> None:
        """Take the best of one tile."""
        scores = tile.scores[0].numpy()
        width = len(scores) // (GROUPS * self.k)
        found = np.arange(len(scores))
        if width > 1:  # the best of each group are k different scores, and bound the k-th best
            groups = scores[: len(scores) // width * width].reshape(-1, width).max(1)
            found = np.flatnonzero(scores >= np.partition(groups, len(groups) - self.k)[-self.k])
        found = found[scores[found] > -np.inf]
        self.positions = np.concatenate([self.positions, found + tile.first])
        self.scores = np.concatenate([self.scores, scores[found] + np.float32(0)])  # -0.0 becomes 0.0
        best = np.lexsort((self.positions, -self.scores))[: self.k]
        self.positions, self.scores = self.positions[best], self.scores[best]

    def result(self, first_row: int, candidates: Candidates) -> TopK:
        """The list of the query numbered `first_row`."""
        n = len(self.positions)
        rows, ranks = np.full(n, first_row, dtype=np.int64), np.arange(1, n + 1)
        return TopK(rows, candidates.scored[self.positions], self.scores, ranks)


def _bound(scores: Tensor, k: int) -> Tensor:
    """A score (U,) that at least k of each row reach, and few more; the lowest of all where a row has no k."""
    m = scores.shape[1]
    if m <= k:
        return scores.new_full((len(scores),), torch.finfo(scores.dtype).min)
    width = m // (GROUPS * k)
    if width > 1:  # the best of each group are k different scores
        scores = scores[:, : m // width * width].unflatten(1, (-1, width)).amax(2)
    return scores.topk(k, dim=1).values[:, -1].clamp(min=torch.finfo(scores.dtype).min)


def _places(rows: Tensor, n: int) -> Tensor:
    """Place from 0 of each element inside its row, for rising `rows`."""
    if n == 1:
        return torch.arange(len(rows), device=rows.device)
    counts = torch.bincount(rows, minlength=n)
    return torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]


def _scores(keys: Tensor) -> Tensor:
    return _ordered((keys >> 32).int()).view(torch.float32)


def _ordered(bits: Tensor) -> Tensor:
    """Bits int32 of floats to integers in the same order, and back (it is its own inverse)."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
