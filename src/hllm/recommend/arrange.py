"""Lists arranged under rules about the list as a whole: at most n of a value, and maximal marginal relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hllm.evaluate.best import TopK

POOL, TIMES = 100, 10  # items that a diverse list is chosen from: the best of each user
MORE = 4  # times as many, where the limits leave fewer than k

Fetch = Callable[[np.ndarray, int], TopK]  # (query rows, k) -> their best k, rows numbered as the queries are
Vectors = Callable[[np.ndarray], np.ndarray]  # tokens (m,) -> vectors of length one (m, d)


@dataclass(frozen=True)
class Arrangement:
    """codes int64 by token, -1 = no value, and at most `limit` of each; `diversity` 0 to 1 of MMR."""

    codes: np.ndarray | None = None
    limit: int = 0
    diversity: float = 0.0

    def __bool__(self) -> bool:
        return self.codes is not None or self.diversity > 0


def arranged(fetch: Fetch, n: int, k: int, how: Arrangement, vectors: Vectors) -> TopK:
    """The best k of each of `n` queries under `how`; fewer rows where no more items are allowed.

    Under a limit the answer is exact: more is fetched until k are found or no candidate is left. Maximal marginal
    relevance chooses among the best max(100, 10 k) items: the next is the one with the largest
    (1 - diversity) * score - diversity * (largest cosine with an item chosen already), scores scaled to 0 to 1
    over these items (Carbonell and Goldstein, 1998).
    """
    size = max(POOL, TIMES * k) if how.diversity else MORE * k
    pending, done = np.arange(n), {}
    while len(pending):
        pool = fetch(pending, size)
        edges = np.searchsorted(pool.rows, [pending, pending + 1])
        short = []
        for row, first, end in zip(pending.tolist(), *edges.tolist(), strict=True):
            chosen = _choose(pool.tokens[first:end], pool.scores[first:end], k, how, vectors)
            if len(chosen) < k and end - first == size:
                short.append(row)
            else:
                done[row] = first + chosen, pool
        pending, size = np.array(short, dtype=np.int64), size * MORE
    rows = np.repeat(np.arange(n), [len(done[row][0]) for row in range(n)])
    parts = [
        (pool.tokens[at], pool.scores[at], np.arange(1, len(at) + 1))
        for at, pool in (done[r] for r in range(n))
    ]
    if not parts:
        return TopK(rows, rows, np.zeros(0, np.float32), rows)
    tokens, scores, ranks = (np.concatenate(column) for column in zip(*parts, strict=True))
    return TopK(rows, tokens, scores, ranks)


def _choose(tokens: np.ndarray, scores: np.ndarray, k: int, how: Arrangement, vectors: Vectors) -> np.ndarray:
    """Places int64 of up to `k` chosen items, in their order."""
    codes = np.full(len(tokens), -1) if how.codes is None else how.codes[tokens]
    order = _marginal(tokens, scores, how, codes, k, vectors) if how.diversity else range(len(tokens))
    used: dict[int, int] = {}
    chosen: list[int] = []
    for at in order:
        code = int(codes[at])
        if code >= 0 and used.get(code, 0) >= how.limit:
            continue
        used[code] = used.get(code, 0) + 1
        chosen.append(at)
        if len(chosen) == k:
            break
    return np.array(chosen, dtype=np.int64)


def _marginal(
    tokens: np.ndarray, scores: np.ndarray, how: Arrangement, codes: np.ndarray, k: int, vectors: Vectors
) -> list[int]:
    """Places in the order of maximal marginal relevance, until `k` are within the limit."""
    if not len(tokens):
        return []
    unit = vectors(tokens)
    spread = float(scores[0] - scores.min())
    relevance = (scores - scores.min()) / spread if spread else np.ones(len(scores), np.float32)
    likeness = np.full(len(tokens), -np.inf)
    free, used, order = np.ones(len(tokens), bool), {}, []  # type: tuple[np.ndarray, dict[int, int], list[int]]
    while free.any() and len(order) < k:
        near = np.where(np.isfinite(likeness), likeness, 0.0)
        value = np.where(free, (1 - how.diversity) * relevance - how.diversity * near, -np.inf)
        at = int(value.argmax())
        order.append(at)
        free[at] = False
        code = int(codes[at])
        used[code] = used.get(code, 0) + 1
        if code >= 0 and used[code] >= how.limit:
            free &= codes != code
        likeness = np.maximum(likeness, unit @ unit[at])
    return order


def joined(parts: Sequence[TopK]) -> TopK:
    """Lists of different queries as one, by query."""
    if len(parts) == 1:
        return parts[0]
    none = TopK(*(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32, np.int64)))
    parts = [none, *parts]
    order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
    fields = ("rows", "tokens", "scores", "ranks")
    return TopK(*(np.concatenate([getattr(part, name) for part in parts])[order] for name in fields))
