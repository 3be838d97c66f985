"""Which items may be recommended to whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.tables.values import id_list
from hllm.evaluate.ranking import candidate_tokens

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset


def _nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)


@dataclass(frozen=True)
class Rules:
    """Rules in tokens. They are applied before the top k are taken, never after.

    candidates  int64 (C,) tokens that may be recommended at all
    keep_seen   False: nothing from a user's own history
    excluded    (rows, tokens) int64 (P,): not this item to this query
    """

    candidates: np.ndarray
    keep_seen: bool = False
    excluded: tuple[np.ndarray, np.ndarray] = field(default_factory=_nothing)


def make_rules(
    dataset: Dataset,
    *,
    candidates: str | Iterable[Any] = "interacted",
    exclude: Iterable[Any] = (),
    exclude_by_query: Mapping[int, Iterable[Any]] | None = None,
    keep_seen: bool = False,
) -> Rules:
    """Rules from item ids.

    `candidates` is "interacted" (items with an event, and those added later), "catalogue", or ids;
    `exclude` (ids) holds for everybody, `exclude_by_query` for the query of that number.
    Raises DataError naming an unknown id, ConfigError for unknown `candidates`.
    """
    tokens = candidate_tokens(dataset, candidates)
    if isinstance(candidates, str):
        # Items added after training have no event, and are there to be recommended.
        first_added = dataset.n_catalogue - int(dataset.meta.get("n_added", 0)) + 1
        tokens = np.union1d(tokens, np.arange(first_added, dataset.n_catalogue + 1))
        if dataset.meta.get("updated"):  # items of the catalogue whose first events came later
            tokens = np.union1d(tokens, np.unique(dataset.tokens))
    tokens = np.setdiff1d(tokens, tokens_of(dataset, exclude))
    pairs = [
        (row, dataset.token_of(item))
        for row, items in sorted((exclude_by_query or {}).items())
        for item in id_list(items, "exclude_by_query")
    ]
    rows, hidden = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return Rules(tokens, keep_seen, (rows, hidden))


def tokens_of(dataset: Dataset, ids: Iterable[Any], name: str = "exclude") -> np.ndarray:
    """Tokens int64 of item ids, which the caller gave as `name`. Raises DataError naming an unknown one."""
    return np.array([dataset.token_of(item) for item in id_list(ids, name)], dtype=np.int64)
