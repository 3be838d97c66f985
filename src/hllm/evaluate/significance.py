"""How sure a mean over users is: bootstrap intervals, and the paired comparison of two runs.

Users are resampled with replacement. Drawing n users out of D distinct kinds, with c_i users of
kind i, is one multinomial draw, so the cost depends on the number of distinct values (a few
hundred ranks) and not on the number of users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hllm.evaluate.metrics import Metrics

LEVEL = 95.0  # percent
DRAWS_AT_ONCE = 1 << 22  # multinomial counts held at a time: 32 MiB


def bootstrap_means(values: np.ndarray, counts: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Means float64 (n, M) of `n` resamples of the users.

    values (D, M) holds the metrics of each kind of user, counts int64 (D,) how many users are of it.
    """
    rng = np.random.default_rng(seed)
    total = int(counts.sum())
    share = counts / total
    means = np.empty((n, values.shape[1]))
    step = max(1, DRAWS_AT_ONCE // max(1, len(counts)))
    for first in range(0, n, step):
        last = min(first + step, n)
        means[first:last] = rng.multinomial(total, share, size=last - first) @ values / total
    return means


def interval(means: np.ndarray) -> np.ndarray:
    """The 95% interval (2, M) between the percentiles of bootstrap `means` (n, M)."""
    tail = (100.0 - LEVEL) / 2
    return np.asarray(np.percentile(means, [tail, 100.0 - tail], axis=0))


@dataclass(frozen=True)
class Comparison:
    """`difference` = mean of `second` minus mean of `first`, over the same users."""

    metric: str
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p_value: float
    n_users: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.metric}: {self.first:.4f} → {self.second:.4f}, difference {self.difference:+.4f} "
            f"[{low:+.4f}, {high:+.4f}], p = {self.p_value:.4f}, {self.n_users:,} users"
        )


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, metric: str = "", n: int = 10_000, seed: int = 0
) -> Comparison:
    """Compare per-user values (n_users,) of two runs on the same users, in the same order.

    The p-value is two-sided: twice the smaller share of resampled differences on either side of
    zero, with one added so that it is never 0. Equal runs give 1.
    """
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise DataError(
            f"paired comparison needs the same users twice, not {first.shape} and {second.shape} values"
        )
    kinds, counts = np.unique(second - first, return_counts=True)
    means = bootstrap_means(kinds[:, None], counts, n, seed)
    low, high = interval(means)[:, 0]
    smaller = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return Comparison(
        metric=metric,
        first=float(first.mean()),
        second=float(second.mean()),
        difference=float((second - first).mean()),
        interval=(float(low), float(high)),
        p_value=min(1.0, 2 * (smaller + 1) / (n + 1)),
        n_users=len(first),
    )


def compare(
    first: Metrics, second: Metrics, metric: str = "ndcg@10", n: int = 10_000, seed: int = 0
) -> Comparison:
    """Paired bootstrap of two evaluations under one protocol.

    Raises DataError where they do not answer the same question: other data, split, candidates, seen
    filter, query time, users or targets.
    """
    for field in ("fingerprint", "split", "candidates", "n_items", "seen", "query_time"):
        a, b = getattr(first.protocol, field), getattr(second.protocol, field)
        if a != b:
            raise DataError(
                f"{first.name} and {second.name} cannot be compared: {field} is {a} in one and {b} in the "
                "other; evaluate both the same way"
            )
    same = np.array_equal(first.users, second.users) and np.array_equal(first.targets, second.targets)
    if not same:
        raise DataError(f"{first.name} and {second.name} were evaluated on different users or targets")
    if n < 1:
        raise ConfigError(f"n={n}: a comparison needs at least one resample")
    return paired_bootstrap(first.per_user(metric), second.per_user(metric), metric, n, seed)
