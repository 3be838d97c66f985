"""What was exported against the run it came from: scores, first ten items, NDCG@10 on the test split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hllm.data.batches.queries import Queries, eval_queries, query_batch
from hllm.errors import HLLMError
from hllm.evaluate.ranking import RankOptions, target_ranks
from hllm.recommend.session import Session

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.evaluate.candidates import Candidates
    from hllm.models.hllm import Network

TOLERANCE = 1e-4  # relative to the largest score, at least 1
TOP = 10
# All test users are checked, unless they and the items are more than so many pairs; then at least so many users.
USERS, PAIRS = 1000, 10**9

# Queries of `part` -> float32 (B, w), as another program makes them.
Ask = Callable[[Queries, slice], np.ndarray]
# float32 (B, w), m -> rows int64 (B, m) of the best items.
Search = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Parity:
    """How an export compares with the run on users of its test split.

    users, of    users compared, of so many in the split
    difference   the largest of a score, relative to the user's largest score
    same         users whose first ten items are the same
    overlap      share of the run's first ten items that are among the export's, mean over users
    ndcg, run_ndcg   NDCG@10 of the export and of the run, among these users
    """

    users: int
    of: int
    difference: float
    same: int
    overlap: float
    ndcg: float
    run_ndcg: float


def compare(
    network: Network,
    data: Dataset,
    ask: Ask,
    scored: np.ndarray,
    max_len: int | None,
    search: Search | None = None,
    exact: bool = True,
) -> Parity | None:
    """An export against the run; None without test users.

    scored   float32 (n + 1, w), what its queries are multiplied with
    search   how it finds the best items, where not by all these products
    exact    raise HLLMError where scores differ by more than 1e-4 of the largest
    """
    everyone = eval_queries(data, "test")
    if not len(everyone):
        return None
    session = Session(network, data, max_len)
    candidates = session.candidates()
    n = min(len(everyone), max(USERS, PAIRS // len(candidates)))
    queries = everyone.take(np.linspace(0, len(everyone) - 1, n).round().astype(int))
    top = session.top(queries, TOP, candidates, keep_seen=True)
    ranks = target_ranks(network, queries, RankOptions(candidates, False, max_len, _device(network))).ranks
    edges = np.searchsorted(top.rows, np.arange(n + 1))
    largest, same, kept, gain = 0.0, 0, 0.0, 0.0
    for first in range(0, n, 32):
        part = slice(first, min(first + 32, n))
        made = ask(queries, part)
        scores = made @ scored[candidates.scored].T  # (B, C)
        scores[:, candidates.holes] = -np.inf
        lists = _best(scores, candidates) if search is None else search(made, TOP)
        for row, mine, found in zip(range(part.start, part.stop), scores, lists, strict=True):
            wanted, value = (a[edges[row] : edges[row + 1]] for a in (top.tokens, top.scores))
            other = mine[np.searchsorted(candidates.scored, wanted)]
            scale = max(1.0, float(np.abs(value).max(initial=0)))
            largest = max(largest, float(np.abs(other - value).max(initial=0)) / scale)
            found = found[: len(wanted)]
            same += int(np.array_equal(found, wanted))
            kept += len(np.intersect1d(found, wanted)) / max(1, len(wanted))
        gain += float(_gains(_ranks(scores, queries, part, candidates)).sum())
    if exact and largest > TOLERANCE:
        raise HLLMError(
            f"the exported model gives scores that differ by {largest:.1e} of the largest, more than {TOLERANCE:.0e}"
        )
    return Parity(n, len(everyone), largest, same, kept / n, gain / n, float(_gains(ranks).mean()))


def run_queries(network: Network, max_len: int | None) -> Ask:
    """Queries as the run itself makes them."""

    def ask(queries: Queries, part: slice) -> np.ndarray:
        with torch.no_grad():
            batch = query_batch(queries, part, max_len, _device(network))
            return np.asarray(network.query(batch).float().cpu().numpy())

    return ask


def padded_queries(
    run: Callable[[np.ndarray, np.ndarray], np.ndarray], raw: np.ndarray, max_len: int | None
) -> Ask:
    """Queries by a program `run` of vectors (B, L, w), rows of `raw` padded on the right, and lengths int64 (B,)."""

    def ask(queries: Queries, part: slice) -> np.ndarray:
        ends, starts = queries.ends[part], queries.starts[part]
        lengths = np.minimum(ends - starts, max_len or int((ends - starts).max()))
        rows = np.zeros((len(ends), int(lengths.max())), dtype=np.int64)
        for row, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
            rows[row, :length] = queries.tokens[end - length : end]
        return run(raw[rows], lengths.astype(np.int64))

    return ask


def _best(scores: np.ndarray, candidates: Candidates) -> list[np.ndarray]:
    """Tokens of the best of scores (B, C), equal ones by token."""
    lists = []
    for mine in scores:
        k = min(TOP, len(mine))
        near = np.flatnonzero(mine >= np.partition(mine, -k)[-k])
        lists.append(candidates.scored[near[np.lexsort((near, -mine[near]))][:k]])
    return lists


def _ranks(scores: np.ndarray, queries: Queries, part: slice, candidates: Candidates) -> np.ndarray:
    """Ranks int64 (B,) of the held-out items, seen ones hidden; 0 for a target that is."""
    row, seen = queries.history_pairs(part)
    place = candidates.positions(seen)
    scores[row[place >= 0], place[place >= 0]] = -np.inf
    place = candidates.positions(queries.targets[part])
    value = np.where(place >= 0, scores[np.arange(len(place)), place], -np.inf)
    return np.where(np.isfinite(value), (scores >= value[:, None]).sum(1), 0)


def _gains(ranks: np.ndarray) -> np.ndarray:
    """NDCG@10 of each rank; 0 for a target that is hidden."""
    found = (ranks > 0) & (ranks <= TOP)
    return np.where(found, 1 / np.log2(np.maximum(ranks, 1) + 1.0), 0.0)


def _device(network: Network) -> torch.device:
    return next(network.parameters()).device
