"""The one ranking engine: exact ranks of held-out items and exact top-k lists, tile by tile.

Users are taken in blocks and candidates in tiles, so that a block's tile of scores is all that is
ever held. `evaluate` and `recommend` both come here, with the same blocks and tiles, and so rank by
the very same float32 scores.

    target_ranks   rank = 1 + the other candidates that score at least as much: ties count against
    top_k          by score, equal scores by token
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hllm.data.batches.queries import query_batch, query_parts
from hllm.data.tables.values import id_list
from hllm.errors import ConfigError, unknown
from hllm.evaluate.best import TopK, make_best
from hllm.evaluate.candidates import Candidates
from hllm.evaluate.counting import TargetCount, TargetRanks
from hllm.evaluate.tiles import Block, Pairs, Ranker, by_tile, tile_size
from hllm.hardware import is_out_of_memory, release_memory
from hllm.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.data.dataset import Dataset
    from hllm.packing import Batch

__all__ = [
    "RankOptions",
    "Ranker",
    "TargetRanks",
    "TopK",
    "candidate_tokens",
    "scan",
    "target_ranks",
    "top_k",
]
BATCH_USERS = 512
CANDIDATES = ("interacted", "catalogue")


@dataclass(frozen=True)
class RankOptions:
    """How to rank. The same options give the same scores, whoever asks.

    candidates  int64 (C,) tokens that compete, each once; or the same prepared, to be used again
    keep_seen   False hides the whole history before the target, not only the window
    max_len     events of the history that the ranker sees; None = all
    excluded    (rows, tokens) int64 (P,): pairs of query and item to hide as well
    batch_users, tile_items   sizes of the tiles; None = chosen by memory
    """

    candidates: np.ndarray | Candidates
    keep_seen: bool = False
    max_len: int | None = None
    device: torch.device | str = "cpu"
    excluded: tuple[np.ndarray, np.ndarray] | None = None
    batch_users: int = BATCH_USERS
    tile_items: int | None = None


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
    ranker: Ranker,
    queries: Queries,
    options: RankOptions,
    *,
    targets: bool = False,
    k: int | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[ScannedBlock]:
    """Rank block by block, so that not even the results need to fit in memory.

    `targets` asks for ranks of held-out items, `k` for lists; both come from one computation. A block
    that memory does not hold is ranked in halves, whose scores may differ in the last bit. Of several
    processes each ranks its own blocks, and all equally many: a block too many is ranked and left out.
    """
    if k is not None and k < 1:
        raise ConfigError(f"k={k}: ask for at least one item")
    given = options.candidates
    candidates = given if isinstance(given, Candidates) else Candidates(given)
    work = _Scan(ranker, queries, options, candidates, targets, k)
    with _evaluating(ranker):
        parts = list(query_parts(queries, options.max_len, options.batch_users))
        own = parts[ranks.rank :: ranks.world]
        yield from work.blocks(own)
        if len(own) < -(-len(parts) // ranks.world):
            for _ in work.blocks(parts[:1]):
                pass


@dataclass(frozen=True)
class _Prepared:
    """What the host makes of the queries `part` before their block is launched."""

    part: slice
    batch: Batch  # on the CPU
    hidden: Pairs  # on the CPU
    tile_size: int
    targets: np.ndarray | None  # positions int64 (U,)


@dataclass(frozen=True)
class _Scan:
    """What every block of a scan shares."""

    ranker: Ranker
    queries: Queries
    options: RankOptions
    candidates: Candidates
    targets: bool
    k: int | None

    def blocks(self, parts: Sequence[slice]) -> Iterator[ScannedBlock]:
        """Rank each of `parts` as one block; where memory runs out, as two halves, and so on.

        Nothing is under way on a device while a caller has a block.
        """
        ready: _Prepared | None = None
        for part, following in zip_longest(parts, parts[1:]):
            try:
                with torch.no_grad():
                    block, ready = self.block(ready or self.prepare(part), following)
            except (RuntimeError, MemoryError) as err:
                if part.stop - part.start == 1 or not is_out_of_memory(err):
                    raise
                ready = None
            else:
                yield block
                continue
            # Out of the handler, whose traceback keeps the block's tensors alive.
            release_memory()
            middle = (part.start + part.stop) // 2
            yield from self.blocks([slice(part.start, middle), slice(middle, part.stop)])

    def prepare(self, part: slice) -> _Prepared:
        """What needs no device."""
        options, queries, candidates = self.options, self.queries, self.candidates
        batch = query_batch(queries, part, options.max_len)
        size = tile_size(batch.n_users, torch.device(options.device), options.tile_items)
        hidden = by_tile(*_hidden(candidates, options, queries, part), size, len(candidates.scored))
        targets = candidates.positions(queries.targets[part]) if self.targets else None
        return _Prepared(part, batch, hidden, size, targets)

    def block(self, made: _Prepared, following: slice | None) -> tuple[ScannedBlock, _Prepared | None]:
        """Rank the queries of `made` together; those of `following` are prepared while a GPU works."""
        device, candidates = torch.device(self.options.device), self.candidates
        batch = made.batch if device.type == "cpu" else made.batch.to(device)
        block = Block(self.ranker, batch, candidates, made.hidden, made.tile_size)
        count = None if made.targets is None else TargetCount(block, made.targets)
        best = None if self.k is None else make_best(batch.n_users, self.k, block.device)
        for tile in block.tiles():
            if count is not None:
                count.add(tile)
            if best is not None:
                best.add(tile)
        # All is launched. What is read from here on waits for the GPU.
        ready = None
        if following is not None and _overlaps(device):
            with suppress(Exception):  # it is prepared once more in its own turn, and fails there
                ready = self.prepare(following)
        block.check()
        found = ScannedBlock(
            made.part,
            None if count is None else count.result(),
            None if best is None else best.result(made.part.start, candidates),
        )
        return found, ready


def _overlaps(device: torch.device) -> bool:
    """Whether the host has time while a block is ranked: beside a GPU, not where it ranks itself."""
    return device.type != "cpu"


def _hidden(
    candidates: Candidates, options: RankOptions, queries: Queries, part: slice
) -> tuple[np.ndarray, np.ndarray]:
    """(row inside `part`, position) int64 pairs to hide."""
    pairs = [] if options.keep_seen else [queries.history_pairs(part)]
    if options.excluded is not None:
        rows, tokens = options.excluded
        chosen = (rows >= part.start) & (rows < part.stop)
        pairs.append((rows[chosen] - part.start, tokens[chosen]))
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows = np.concatenate([r for r, _ in pairs])
    positions = candidates.positions(np.concatenate([t for _, t in pairs]))
    return rows[positions >= 0], positions[positions >= 0]


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
