"""A recommender made ready: its model, candidates and rules prepared once and used by many requests."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.baselines.popularity import Popularity
from hllm.evaluate.best import TopK
from hllm.evaluate.candidates import Candidates
from hllm.evaluate.evaluation import device_of
from hllm.evaluate.ranking import Ranker, RankOptions, top_k
from hllm.recommend.rules import make_rules, tokens_of

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.data.dataset import Dataset


class Session:
    """Answers requests of one model over one dataset. What depends on neither request nor weights is kept.

    The item table is the model's own (models/hllm.py), and follows its weights.
    """

    def __init__(self, ranker: Ranker, data: Dataset, max_len: int | None) -> None:
        self.ranker = ranker
        self.data = data
        self.max_len = max_len
        self._candidates: dict[str, Candidates] = {}

    def candidates(self, which: Any = "interacted", exclude: Iterable[Any] = ()) -> Candidates:
        """Candidates by name (kept) or by ids, without the items `exclude`."""
        found = self._candidates.get(which) if isinstance(which, str) else None
        if found is None:
            found = Candidates(make_rules(self.data, candidates=which).candidates)
            if isinstance(which, str):
                self._candidates[which] = found
        hidden = tokens_of(self.data, exclude)
        return found.without(hidden) if len(hidden) else found

    def top(
        self,
        queries: Queries,
        k: int,
        candidates: Candidates,
        keep_seen: bool = False,
        popular: np.ndarray | None = None,
    ) -> TopK:
        """The best `k` of each query, exactly; of the queries `popular` int64 (n,) the most popular unseen items."""
        rankers = [(self.ranker, np.arange(len(queries)))]
        if popular is not None and len(popular):
            rankers = [(self.ranker, np.setdiff1d(rankers[0][1], popular)), (self.popularity, popular)]
        parts = []
        for ranker, rows in rankers:
            options = RankOptions(candidates, keep_seen, self.max_len, device_of(ranker))
            part = top_k(ranker, queries if len(rankers) == 1 else queries.take(rows), options, k)
            parts.append(TopK(rows[part.rows], part.tokens, part.scores, part.ranks))
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate([part.rows for part in parts]), kind="stable")
        fields = ("rows", "tokens", "scores", "ranks")
        return TopK(*(np.concatenate([getattr(part, name) for part in parts])[order] for name in fields))

    @cached_property
    def popularity(self) -> Popularity:
        """Training events of each item."""
        return Popularity().fit(self.data)
