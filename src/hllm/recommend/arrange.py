"""Lists arranged under rules about the list as a whole: at most n of a value, and maximal marginal relevance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hllm.evaluate.best import TopK

POOL, TIMES = 100, 10  # items that a diverse list is chosen from: the best of each user
MORE = 4  # times as many, where the limits leave fewer than k

Fetch = Callable[[np.ndarray, int], TopK]  # (query rows, k) -> their best k, rows numbered as the queries are
Vectors = Callable[[np.ndarray], np.ndarray]  # tokens (m,) -> vectors of length one (m, d)


@dataclass(frozen=True)
class Capped:
    """At most `limit` items of each label; those of a token are codes[offsets[token] : offsets[token + 1]], int64."""

    codes: np.ndarray
    offsets: np.ndarray
    limit: int

    def of(self, tokens: np.ndarray) -> list[list[int]]:
        """The labels of each token."""
        edges = zip(self.offsets[tokens].tolist(), self.offsets[tokens + 1].tolist(), strict=True)
        return [self.codes[first:end].tolist() for first, end in edges]


@dataclass(frozen=True)
class Arrangement:
    """How many of a label, if that is limited, and `diversity`, 0 to 1, of maximal marginal relevance."""

    capped: Capped | None = None
    diversity: float = 0.0

    def __bool__(self) -> bool:
        return self.capped is not None or self.diversity > 0


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
    labels = [[] for _ in tokens] if how.capped is None else how.capped.of(tokens)  # type: list[list[int]]
    limit = 0 if how.capped is None else how.capped.limit
    if how.diversity:
        return np.array(_marginal(tokens, scores, how.diversity, labels, limit, k, vectors), dtype=np.int64)
    used: Counter[int] = Counter()
    chosen: list[int] = []
    for at, own in enumerate(labels):
        if any(used[label] >= limit for label in own):
            continue
        used.update(own)
        chosen.append(at)
        if len(chosen) == k:
            break
    return np.array(chosen, dtype=np.int64)


def _marginal(
    tokens: np.ndarray,
    scores: np.ndarray,
    diversity: float,
    labels: list[list[int]],
    limit: int,
    k: int,
    vectors: Vectors,
) -> list[int]:
    """Places in the order of maximal marginal relevance, up to `k`, no label more than `limit` times."""
    if not len(tokens):
        return []
    unit = vectors(tokens)
    spread = float(scores[0] - scores.min())
    relevance = (scores - scores.min()) / spread if spread else np.ones(len(scores), np.float32)
    likeness = np.full(len(tokens), -np.inf)
    having: dict[int, list[int]] = {}
    for at, own in enumerate(labels):
        for label in own:
            having.setdefault(label, []).append(at)
    free, used = np.ones(len(tokens), bool), Counter[int]()
    order: list[int] = []
    while free.any() and len(order) < k:
        near = np.where(np.isfinite(likeness), likeness, 0.0)
        value = np.where(free, (1 - diversity) * relevance - diversity * near, -np.inf)
        at = int(value.argmax())
        order.append(at)
        free[at] = False
        used.update(labels[at])
        for label in labels[at]:
            if used[label] >= limit:
                free[having[label]] = False
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
