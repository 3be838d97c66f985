"""A recommender made ready: its model, candidates and rules prepared once and used by many requests."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.baselines.popularity import Popularity
from hllm.errors import ConfigError
from hllm.evaluate.best import TopK
from hllm.evaluate.candidates import Candidates
from hllm.evaluate.evaluation import device_of
from hllm.evaluate.ranking import Ranker, RankOptions, top_k
from hllm.recommend.arrange import joined
from hllm.recommend.index import ItemIndex, index_of, nearest
from hllm.recommend.options import availability, moment_of
from hllm.recommend.rules import make_rules, tokens_of

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.data.dataset import Dataset

EXACT = 1_000_000  # candidates up to which search is exact unless asked for otherwise


class Session:
    """Answers requests of one model over one dataset. What depends on neither request nor weights is kept.

    The item table is the model's own (models/hllm.py), and follows its weights.
    """

    def __init__(self, ranker: Ranker, data: Dataset, max_len: int | None) -> None:
        self.ranker = ranker
        self.data = data
        self.max_len = max_len
        self._candidates: dict[str, Candidates] = {}
        self._index: list[ItemIndex | None] = []  # none or one, once it was looked for

    def ranked_by(self, ranker: Ranker) -> Session:
        """The same with another ranker; what is prepared is shared."""
        other = Session(ranker, self.data, self.max_len)
        other._candidates, other._index = self._candidates, self._index
        return other

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
        hidden: tuple[np.ndarray, np.ndarray] | None = None,
        index: ItemIndex | None = None,
    ) -> TopK:
        """The best `k` of each query; of the queries `popular` int64 (n,) the most popular unseen items.

        hidden  (rows, tokens) int64 (P,): not this item to this query
        index   looks for them among the items near the query; None: exactly, among all
        """
        rankers = [(self.ranker, np.arange(len(queries)))]
        if popular is not None and len(popular):
            rankers = [(self.ranker, np.setdiff1d(rankers[0][1], popular)), (self.popularity, popular)]
        parts = []
        for ranker, rows in rankers:
            pairs = None if hidden is None or not len(hidden[0]) else renumbered(hidden, rows, len(queries))
            asked = queries if len(rankers) == 1 else queries.take(rows)
            if index is not None and ranker is self.ranker:
                part, short = nearest(index, self, asked, k, candidates, keep_seen, pairs)
                parts.append(TopK(rows[part.rows], part.tokens, part.scores, part.ranks))
                if not len(short):
                    continue
                pairs = None if pairs is None else renumbered(pairs, short, len(asked))
                asked, rows = asked.take(short), rows[short]
            options = RankOptions(candidates, keep_seen, self.max_len, device_of(ranker), pairs)
            with torch.inference_mode():  # a tenth less time than without gradients, for one user
                part = top_k(ranker, asked, options, k)
            parts.append(TopK(rows[part.rows], part.tokens, part.scores, part.ranks))
        return joined(parts)

    def index(self, approximate: bool | None, candidates: Candidates) -> ItemIndex | None:
        """The run's index where a request is to be answered by it.

        approximate  None: where the run has one, and more than a million items compete; True: always; False: never.
                     A request for fewer than half of the items is answered exactly, which is then the faster way.
                     Raises ConfigError where there is none to be used.
        """
        if approximate is False or (approximate is None and len(candidates) <= EXACT):
            return None
        if not self._index:
            self._index.append(index_of(self))
        (found,) = self._index
        if found is None and approximate:
            raise ConfigError("this run has no index of its items as they are; make one: hllm index RUN")
        return found if found is not None and 2 * len(candidates) >= len(found) else None

    @cached_property
    def popularity(self) -> Popularity:
        """Training events of each item."""
        return Popularity().fit(self.data)

    @cached_property
    def latest(self) -> int:
        """When the dataset's latest event was."""
        return moment_of(self.data, None)

    @cached_property
    def availability(self) -> tuple[np.ndarray, np.ndarray] | None:
        """From when and until when each item may be recommended; None where the items do not say."""
        return availability(self.data)

    def directions(self, tokens: np.ndarray) -> np.ndarray:
        """Item vectors float32 (m, d) of `tokens` int64 (m,), scaled to length one; zero vectors stay zero."""
        raw = self.ranker.table().raw  # type: ignore[attr-defined]
        rows = raw[torch.from_numpy(tokens).to(raw.device)].float()
        return torch.nn.functional.normalize(rows, dim=-1).cpu().numpy()


def renumbered(
    pairs: tuple[np.ndarray, np.ndarray], rows: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """(row, token) pairs of the queries `rows` int64 of `n`, by their places among these."""
    place = np.full(n, -1)
    place[rows] = np.arange(len(rows))
    kept = place[pairs[0]] >= 0
    return place[pairs[0][kept]], pairs[1][kept]
