"""Metrics of anyone's recommendation lists against any number of held-out items a user.

    recall@k = hits / |truth|      hr@k = [any hit]      mrr@k = 1 / rank of the first hit
    ndcg@k   = sum over hits of 1 / log2(rank + 1), over the same sum for a perfect list of
               min(k, |truth|) items

Hits are those at rank <= k. Users without truth are left out and counted; users with truth and no
recommendations count as misses.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hllm.errors import ConfigError, DataError, unknown
from hllm.evaluate.metrics import DEFAULT_KS, check_ks
from hllm.evaluate.significance import bootstrap_means, interval


@dataclass(frozen=True)
class ListMetrics:
    """Means over the `n_users` users with truth, with 95% intervals.

    `n_without_truth` users were recommended something but have no truth; `n_without_recs` users have
    truth but no list, and count as misses.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    n_users: int
    n_without_truth: int
    n_without_recs: int
    n_truths: int

    def __getitem__(self, name: str) -> float:
        if name not in self.values:
            raise ConfigError(unknown("metric", name, self.values))
        return self.values[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **self.values,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "n_users": self.n_users,
            "n_without_truth": self.n_without_truth,
            "n_without_recs": self.n_without_recs,
            "n_truths": self.n_truths,
        }

    def result_line(self) -> str:
        """Who was counted, in one line."""
        return (
            f"lists | {self.n_users:,} users with {self.n_truths:,} held-out items | "
            f"{self.n_without_recs:,} without recommendations (misses) | "
            f"{self.n_without_truth:,} without held-out items (left out)"
        )


def evaluate_lists(
    recommendations: Mapping[Hashable, Sequence[Hashable]],
    truth: Mapping[Hashable, Collection[Hashable]],
    ks: Sequence[int] = DEFAULT_KS,
    bootstrap: int = 1000,
) -> ListMetrics:
    """Metrics of lists in memory: user -> items, best first; user -> held-out items.

    >>> evaluate_lists({"u": ["a", "b", "c"]}, {"u": {"a", "c"}}, ks=[10])["ndcg@10"].__round__(4)
    0.9197
    """
    users = list(dict.fromkeys([*truth, *recommendations]))
    items = list(
        dict.fromkeys(i for lists in (truth, recommendations) for row in lists.values() for i in row)
    )
    user_codes = {user: code for code, user in enumerate(users)}
    item_codes = {item: code for code, item in enumerate(items)}
    recs = [
        (user_codes[user], item_codes[item], rank)
        for user, row in recommendations.items()
        for rank, item in enumerate(row, start=1)
    ]
    held_out = [(user_codes[user], item_codes[item]) for user, row in truth.items() for item in row]
    rec_users, rec_items, ranks = np.array(recs, dtype=np.int64).reshape(-1, 3).T
    truth_users, truth_items = np.array(held_out, dtype=np.int64).reshape(-1, 2).T
    return evaluate_pairs(rec_users, rec_items, ranks, truth_users, truth_items, ks, bootstrap, len(users))


def evaluate_pairs(
    rec_users: np.ndarray,
    rec_items: np.ndarray,
    rec_ranks: np.ndarray,
    truth_users: np.ndarray,
    truth_items: np.ndarray,
    ks: Sequence[int] = DEFAULT_KS,
    bootstrap: int = 1000,
    users_named: int | None = None,
) -> ListMetrics:
    """The same from columns: codes int64 of users and items, the same in both tables; ranks from 1.

    `users_named` is the number of distinct users that either table names, where that is more than
    those who have rows (a user with an empty list of held-out items).
    Raises DataError for ranks below 1, for two items at one rank of a user, for an item twice in one
    list, and where no user has a held-out item.
    """
    ks = check_ks(ks)
    _check_lists(rec_users, rec_items, rec_ranks)
    truth = np.unique(np.stack([truth_users, truth_items], axis=1), axis=0)  # held out twice counts once
    users, sizes = np.unique(truth[:, 0], return_counts=True)
    if not len(users):
        raise DataError("no user has a held-out item, so there is nothing to score")
    ranks, owners = _hits(rec_users, rec_items, rec_ranks, truth, users)
    columns = {name: value for k in ks for name, value in _per_user(ranks, owners, sizes, k).items()}
    values = np.stack(list(columns.values()), axis=1)
    intervals = {}
    if bootstrap:
        low, high = interval(bootstrap_means(values, np.ones(len(users), np.int64), bootstrap)).tolist()
        intervals = dict(zip(columns, zip(low, high, strict=True), strict=True))
    everyone = len(np.union1d(users, rec_users)) if users_named is None else users_named
    return ListMetrics(
        values={name: float(value.mean()) for name, value in columns.items()},
        intervals=intervals,
        n_users=len(users),
        n_without_truth=everyone - len(users),
        n_without_recs=len(np.setdiff1d(users, rec_users)),
        n_truths=len(truth),
    )


def _check_lists(users: np.ndarray, items: np.ndarray, ranks: np.ndarray) -> None:
    if len(ranks) and ranks.min() < 1:
        raise DataError(f"rank {ranks.min()}: ranks start at 1, the best item's")
    for what, other in (("two items at one rank", ranks), ("an item twice", items)):
        order = np.lexsort((other, users))
        same = (np.diff(users[order]) == 0) & (np.diff(other[order]) == 0)
        if same.any():
            raise DataError(f"{int(same.sum()):,} recommendations give a user {what}; keep one of each")


def _hits(
    users: np.ndarray, items: np.ndarray, ranks: np.ndarray, truth: np.ndarray, truth_users: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the recommended items that are in the truth, and whose they are (index into `truth_users`)."""
    width = 1 + max(int(items.max(initial=0)), int(truth[:, 1].max(initial=0)))
    hit = np.isin(users * width + items, truth[:, 0] * width + truth[:, 1])
    return ranks[hit], np.searchsorted(truth_users, users[hit])


def _per_user(ranks: np.ndarray, owners: np.ndarray, sizes: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Values float64 (n_users,) of each metric at k, from hits with their `owners`."""
    n = len(sizes)
    ranks, owners = ranks[ranks <= k], owners[ranks <= k]
    hits = np.bincount(owners, minlength=n)
    gain = np.bincount(owners, weights=1 / np.log2(ranks + 1.0), minlength=n)
    longest = np.minimum(sizes, k)
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, longest.max() + 2)))])[longest]
    first = np.full(n, np.inf)
    np.minimum.at(first, owners, ranks)
    return {
        f"hr@{k}": (hits > 0).astype(np.float64),
        f"recall@{k}": hits / sizes,
        f"ndcg@{k}": gain / ideal,
        f"mrr@{k}": 1 / first,
    }
