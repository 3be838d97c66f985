"""The one ranking engine: exact ranks of held-out items and exact top-k lists, tile by tile.

Users are taken in blocks and candidates in tiles, so that a block's tile of scores is all that is
ever held. `evaluate` and `recommend` both come here, with the same blocks and tiles, and so rank by
the very same float32 scores.

    target_ranks   rank = 1 + the other candidates that score at least as much: ties count against
    top_k          by score, equal scores by token
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hllm.data.batches.queries import query_batch, query_parts
from hllm.data.tables.values import id_list
from hllm.errors import ConfigError, DataError, HLLMError, unknown
from hllm.hardware import is_out_of_memory, release_memory

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.data.dataset import Dataset
    from hllm.packing import Batch

BATCH_USERS = 512
# Scores held at once, by device: 8 MiB of float32 for a CPU, whose allocator reuses blocks of that size
# (tiles of 128 MiB take 2.5 times as long there), 128 MiB for a GPU, which wants large products.
TILE_SCORES = {"cpu": 1 << 21, "cuda": 1 << 25}
MAX_TOKEN = (1 << 31) - 1
CANDIDATES = ("interacted", "catalogue")


class Ranker(Protocol):
    """What can be ranked by: trained models and baselines alike."""

    def query(self, batch: Batch) -> Tensor:
        """One row a user (U, ...): whatever `score` needs to know of the histories in `batch`."""

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m) of the items `tokens` int64 (m,)."""


@dataclass(frozen=True)
class RankOptions:
    """How to rank. The same options give the same scores, whoever asks.

    candidates  int64 (C,) tokens that compete, each once
    keep_seen   False hides the whole history before the target, not only the window
    max_len     events of the history that the ranker sees; None = all
    excluded    (rows, tokens) int64 (P,): pairs of query and item to hide as well
    batch_users, tile_items   sizes of the tiles; None = chosen by memory
    """

    candidates: np.ndarray
    keep_seen: bool = False
    max_len: int | None = None
    device: torch.device | str = "cpu"
    excluded: tuple[np.ndarray, np.ndarray] | None = None
    batch_users: int = BATCH_USERS
    tile_items: int | None = None


@dataclass(frozen=True)
class TargetRanks:
    """ranks int64 (Q,), 0 where the target is hidden or no candidate; tied bool (Q,): another
    candidate has exactly the target's score."""

    ranks: np.ndarray
    tied: np.ndarray


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


@dataclass(frozen=True)
class ScannedBlock:
    """What one block of users gave: the queries `part`, and what was asked for."""

    part: slice
    targets: TargetRanks | None
    top: TopK | None


def candidate_tokens(dataset: Dataset, candidates: str | Iterable[Any] = "interacted") -> np.ndarray:
    """Tokens int64 (C,), sorted: items with an event ("interacted"), all items ("catalogue"), or those of ids.

    Raises ConfigError for another name and DataError naming an id that is not in the catalogue.
    """
    if isinstance(candidates, str):
        if candidates not in CANDIDATES:
            raise ConfigError(unknown("candidates", candidates, CANDIDATES))
        last = dataset.n_candidates if candidates == "interacted" else dataset.n_catalogue
        return np.arange(1, last + 1, dtype=np.int64)
    return np.unique(
        np.array([dataset.token_of(i) for i in id_list(candidates, "candidates")], dtype=np.int64)
    )


def target_ranks(ranker: Ranker, queries: Queries, options: RankOptions) -> TargetRanks:
    """The rank of every query's held-out item among the candidates.

    A target that the filter hides is a miss (protocol.md, "Candidates, seen, ties"). Raises HLLMError
    where scores are not finite numbers.
    """
    blocks = [b.targets for b in scan(ranker, queries, options, targets=True) if b.targets is not None]
    return TargetRanks(
        np.concatenate([np.zeros(0, np.int64), *(b.ranks for b in blocks)]),
        np.concatenate([np.zeros(0, bool), *(b.tied for b in blocks)]),
    )


def top_k(ranker: Ranker, queries: Queries, options: RankOptions, k: int) -> TopK:
    """The best `k` candidates of every query; where fewer are left after hiding, fewer rows."""
    blocks = [b.top for b in scan(ranker, queries, options, k=k) if b.top is not None]
    if not blocks:
        none = np.zeros(0, np.int64)
        return TopK(none, none, np.zeros(0, np.float32), none)
    fields = ("rows", "tokens", "scores", "ranks")
    return TopK(*(np.concatenate([getattr(b, name) for b in blocks]) for name in fields))


def scan(
    ranker: Ranker, queries: Queries, options: RankOptions, *, targets: bool = False, k: int | None = None
) -> Iterator[ScannedBlock]:
    """Rank block by block, so that not even the results need to fit in memory.

    `targets` asks for ranks of held-out items, `k` for lists; both come from one computation. A block
    that memory does not hold is ranked in halves, whose scores may differ in the last bit.
    """
    if k is not None and k < 1:
        raise ConfigError(f"k={k}: ask for at least one item")
    candidates = _Candidates(options)
    with _evaluating(ranker):
        for part in query_parts(queries, options.max_len, options.batch_users):
            yield from _scan_part(ranker, queries, part, candidates, targets, k)


def _scan_part(
    ranker: Ranker, queries: Queries, part: slice, candidates: _Candidates, targets: bool, k: int | None
) -> Iterator[ScannedBlock]:
    """Rank `part` as one block; where memory runs out, as two halves, and so on."""
    try:
        with torch.no_grad():
            block = _scan_block(ranker, queries, part, candidates, targets, k)
    except (RuntimeError, MemoryError) as err:
        if part.stop - part.start == 1 or not is_out_of_memory(err):
            raise
    else:
        yield block
        return
    # Out of the handler, whose traceback keeps the block's tensors alive.
    release_memory()
    middle = (part.start + part.stop) // 2
    for half in (slice(part.start, middle), slice(middle, part.stop)):
        yield from _scan_part(ranker, queries, half, candidates, targets, k)


def _scan_block(
    ranker: Ranker, queries: Queries, part: slice, candidates: _Candidates, targets: bool, k: int | None
) -> ScannedBlock:
    batch = query_batch(queries, part, candidates.options.max_len, candidates.options.device)
    block = _Block(ranker, batch, candidates, *candidates.hidden(queries, part))
    count = _TargetCount(block, candidates.positions(queries.targets[part])) if targets else None
    best = None if k is None else _Best(batch.n_users, k, block.device)
    for tile in block.tiles():
        if count is not None:
            count.add(tile)
        if best is not None:
            best.add(tile)
    block.check()
    return ScannedBlock(
        part,
        None if count is None else count.result(),
        None if best is None else best.result(part.start),
    )


class _Candidates:
    """The candidates cut into tiles, and where a token stands among them."""

    def __init__(self, options: RankOptions) -> None:
        self.options = options
        self.tokens = np.asarray(options.candidates, dtype=np.int64)
        if len(np.unique(self.tokens)) != len(self.tokens) or (len(self.tokens) and self.tokens.min() < 1):
            raise DataError("candidates must be distinct tokens from 1; 0 is padding")
        room = TILE_SCORES.get(torch.device(options.device).type, TILE_SCORES["cpu"])
        self.size = options.tile_items or max(1, room // options.batch_users)
        on_device = torch.from_numpy(self.tokens.copy()).to(options.device)
        starts = range(0, len(self.tokens), self.size)
        self.tiles = [(first, on_device[first : first + self.size]) for first in starts]
        self._position = np.full(int(self.tokens.max(initial=0)) + 1, -1, dtype=np.int64)
        self._position[self.tokens] = np.arange(len(self.tokens))

    def positions(self, tokens: np.ndarray) -> np.ndarray:
        """Index int64 of each token among the candidates, -1 where it is none."""
        known = tokens < len(self._position)
        return np.where(known, self._position[np.where(known, tokens, 0)], -1)

    def hidden(self, queries: Queries, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """(row inside `part`, position) int64 pairs to hide, by rising position."""
        pairs = [] if self.options.keep_seen else [queries.history_pairs(part)]
        if self.options.excluded is not None:
            rows, tokens = self.options.excluded
            chosen = (rows >= part.start) & (rows < part.stop)
            pairs.append((rows[chosen] - part.start, tokens[chosen]))
        if not pairs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        rows = np.concatenate([r for r, _ in pairs])
        positions = self.positions(np.concatenate([t for _, t in pairs]))
        rows, positions = rows[positions >= 0], positions[positions >= 0]
        order = np.argsort(positions, kind="stable")
        return rows[order], positions[order]


@dataclass(frozen=True)
class _Tile:
    """Scores float32 (U, m) of `tokens` (m,), which start at position `first`; hidden ones are -inf."""

    first: int
    tokens: Tensor
    scores: Tensor


class _Block:
    """The scores of one block of users, made tile by tile. A single tile is made once and kept."""

    def __init__(
        self, ranker: Ranker, batch: Batch, candidates: _Candidates, rows: np.ndarray, positions: np.ndarray
    ) -> None:
        self.ranker = ranker
        self.n_users = batch.n_users
        self.device = batch.users.device
        self.candidates = candidates
        self.query = ranker.query(batch)
        self.rows = torch.from_numpy(rows).to(self.device)
        self.positions = torch.from_numpy(positions).to(self.device)
        starts = [first for first, _ in candidates.tiles] + [len(candidates.tokens)]
        self.bounds = np.searchsorted(positions, starts)
        self.bad = torch.zeros((), dtype=torch.bool, device=self.device)
        self.kept: _Tile | None = None

    def tiles(self, wanted: set[int] | None = None) -> Iterator[_Tile]:
        """All tiles, or those whose number is `wanted`."""
        for i, (first, tokens) in enumerate(self.candidates.tiles):
            if wanted is not None and i not in wanted:
                continue
            if self.kept is not None:
                yield self.kept
                continue
            scores = self._scores(tokens)
            pairs = slice(self.bounds[i], self.bounds[i + 1])
            scores[self.rows[pairs], self.positions[pairs] - first] = -torch.inf
            tile = _Tile(first, tokens, scores)
            if len(self.candidates.tiles) == 1:
                self.kept = tile
            yield tile

    def _scores(self, tokens: Tensor) -> Tensor:
        # Full precision even inside someone's autocast: narrow scores would tie.
        with torch.autocast(self.device.type, enabled=False):
            scores = self.ranker.score(self.query, tokens)
        expected = (self.n_users, len(tokens))
        if tuple(scores.shape) != expected or scores.dtype not in (torch.float32, torch.float64):
            raise HLLMError(
                f"{type(self.ranker).__name__}.score gave {scores.dtype} {tuple(scores.shape)}, "
                f"not float32 {expected}"
            )
        scores = scores.float() + 0.0  # memory of our own, and -0.0 becomes 0.0
        if scores.numel():
            low, high = torch.aminmax(scores)
            self.bad |= ~(torch.isfinite(low) & torch.isfinite(high))
        return scores

    def check(self) -> None:
        """Raise HLLMError if any score so far was not a finite number."""
        if bool(self.bad):
            raise HLLMError(
                f"{type(self.ranker).__name__} gives scores that are NaN or infinite, so nothing can be "
                "ranked; its weights or item vectors are damaged: train again, with a lower learning_rate"
            )


class _TargetCount:
    """Counts, for each user, the candidates that score more than, and as much as, the target."""

    def __init__(self, block: _Block, positions: np.ndarray) -> None:
        self.positions = torch.from_numpy(positions).to(block.device)
        self.score = torch.full((block.n_users,), -torch.inf, device=block.device)
        size = block.candidates.size
        # The target's score is read from its own tile: computed alone it could differ in the last bit.
        for tile in block.tiles(wanted=set((positions[positions >= 0] // size).tolist())):
            column, inside = self._columns(tile)
            self.score = torch.where(inside, _gather(tile.scores, column), self.score)
        self.at_least = torch.zeros(block.n_users, dtype=torch.int64, device=block.device)
        self.more = torch.zeros_like(self.at_least)

    def _columns(self, tile: _Tile) -> tuple[Tensor, Tensor]:
        """The target's column in the tile (clamped), and whether it is there: (U,), (U,)."""
        column = self.positions - tile.first
        inside = (self.positions >= 0) & (column >= 0) & (column < len(tile.tokens))
        return column.clamp(0, len(tile.tokens) - 1), inside

    def add(self, tile: _Tile) -> None:
        column, inside = self._columns(tile)
        score = self.score.unsqueeze(1)
        # The target itself is left out by identity, so that a tile made anew with other last bits
        # cannot make it compete with itself.
        own = _gather(tile.scores, column)
        self.at_least += (tile.scores >= score).sum(1) - (inside & (own >= self.score)).long()
        self.more += (tile.scores > score).sum(1) - (inside & (own > self.score)).long()

    def result(self) -> TargetRanks:
        ranked = self.score > -torch.inf
        ranks = torch.where(ranked, self.at_least + 1, 0)
        tied = ranked & (self.at_least > self.more)
        return TargetRanks(ranks.cpu().numpy(), tied.cpu().numpy())


class _Best:
    """Keeps the best k of the tiles seen so far, exactly, ties by token.

    A score and its token are one int64: the float's bits, made to order as integers do, above the
    negated token. So the largest keys are the best scores and, among equals, the lowest tokens.
    """

    def __init__(self, n_users: int, k: int, device: torch.device) -> None:
        self.k = k
        self.keys = torch.zeros((n_users, 0), dtype=torch.int64, device=device)

    def add(self, tile: _Tile) -> None:
        keys = _ordered(tile.scores.view(torch.int32)).long() << 32
        keys += MAX_TOKEN - tile.tokens
        best = keys.topk(min(self.k, keys.shape[1]), dim=1).values
        merged = torch.cat([self.keys, best], dim=1)
        self.keys = merged.topk(min(self.k, merged.shape[1]), dim=1).values

    def result(self, first_row: int) -> TopK:
        scores = _ordered((self.keys >> 32).int()).view(torch.float32)
        kept = scores > -torch.inf
        rows, places = kept.nonzero(as_tuple=True)
        tokens = MAX_TOKEN - (self.keys[kept] & 0xFFFFFFFF)
        return TopK(
            (rows + first_row).cpu().numpy(),
            tokens.cpu().numpy(),
            scores[kept].cpu().numpy(),
            (places + 1).cpu().numpy(),
        )


def _ordered(bits: Tensor) -> Tensor:
    """Bits int32 of floats to integers in the same order, and back (it is its own inverse)."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _gather(scores: Tensor, column: Tensor) -> Tensor:
    """scores[u, column[u]] for every row u."""
    return scores.gather(1, column.unsqueeze(1)).squeeze(1)


@contextmanager
def _evaluating(ranker: Ranker) -> Iterator[None]:
    """A module ranks without dropout, and is left as it was."""
    if not (isinstance(ranker, nn.Module) and ranker.training):
        yield  # nothing to change; modules may drop what they cached when their mode is set
        return
    ranker.eval()
    try:
        yield
    finally:
        ranker.train()
