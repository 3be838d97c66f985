"""Where a model is good: NDCG by history length and by popularity of the held-out item.

Groups hold about equally many users; users of equal value are never torn apart. Held-out items
without a training event are a group of their own: nothing but their text is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.evaluate.metrics import summarise

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries
    from hllm.data.dataset import Dataset

GROUPS = 5
SLICE_METRIC = "ndcg@10"


def slices(
    dataset: Dataset, queries: Queries, ranks: np.ndarray, bootstrap: int = 0, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Rows `{"label", "users", "ndcg@10", "intervals"}` of each breakdown.

    history_length is the number of events before the held-out one; item_popularity the held-out
    item's training events.
    """
    breakdowns = {
        "history_length": np.asarray(queries.ends - queries.starts),
        "item_popularity": dataset.train_counts()[queries.targets],
    }
    return {
        name: slice_rows(values, ranks, np.asarray(queries.users), bootstrap, seed)
        for name, values in breakdowns.items()
    }


def slice_rows(
    values: np.ndarray, ranks: np.ndarray, users: np.ndarray, bootstrap: int = 0, seed: int = 0
) -> list[dict[str, Any]]:
    """One row a group of `values` int64 (Q,), in rising order."""
    group = quantile_groups(values)
    rows = []
    for number in range(int(group.max(initial=-1)) + 1):
        chosen = group == number
        low, high = int(values[chosen].min()), int(values[chosen].max())
        means, intervals = summarise(ranks[chosen], users[chosen], [SLICE_METRIC], bootstrap, seed)
        row: dict[str, Any] = {
            "label": str(low) if low == high else f"{low}–{high}",
            "users": len(np.unique(users[chosen])),
            **means,
        }
        if intervals:
            row["intervals"] = {name: list(pair) for name, pair in intervals.items()}
        rows.append(row)
    return rows


def quantile_groups(values: np.ndarray, n: int = GROUPS) -> np.ndarray:
    """Group number int64 (Q,) of non-negative integers: `n` groups by quantiles, or fewer, 0 alone."""
    group = np.zeros(len(values), dtype=np.int64)
    positive = values[values > 0]
    if not len(positive):
        return group
    edges = np.quantile(positive, np.arange(1, n) / n, method="higher")
    group[values > 0] = np.searchsorted(edges, positive, side="right") + 1
    return np.unique(group, return_inverse=True)[1].astype(np.int64)
