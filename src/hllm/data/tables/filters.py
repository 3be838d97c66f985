"""Filters on interactions: a rating threshold, then a k-core taken to its fixed point.

The k-core is the largest subset in which every user and every item has enough events. It is
unique, so neither the order of rows nor the order of removal matters; a single pass of each
filter, as other systems do, leaves users and items below the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hllm.errors import ConfigError, DataError


@dataclass(frozen=True)
class Filters:
    """What to keep. The two specific thresholds override `min_interactions` for their side.

    drop_duplicates        of events with the same user, item and time keep the first
    min_rating             keep events rated at least this; events without a rating go
    min_interactions       events that every user and every item must have
    """

    min_rating: float | None = None
    min_interactions: int = 1
    min_user_interactions: int | None = None
    min_item_interactions: int | None = None
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        for name in ("min_interactions", "min_user_interactions", "min_item_interactions"):
            value = getattr(self, name)
            missing = value is None and name != "min_interactions"
            if not missing and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name}={value!r}: must be a whole number of at least 1")
        if not isinstance(self.drop_duplicates, bool):
            raise ConfigError(f"drop_duplicates={self.drop_duplicates!r}: must be true or false")
        rating = self.min_rating
        number = isinstance(rating, int | float | np.number) and not isinstance(rating, bool)
        if rating is not None and not (number and abs(rating) <= np.finfo(float).max):  # nor NaN
            raise ConfigError(f"min_rating={self.min_rating!r}: must be a number")

    @property
    def user_events(self) -> int:
        return self.min_interactions if self.min_user_interactions is None else self.min_user_interactions

    @property
    def item_events(self) -> int:
        return self.min_interactions if self.min_item_interactions is None else self.min_item_interactions

    def as_dict(self) -> dict[str, Any]:
        """What was applied, for `dataset.json` and the fingerprint."""
        dropped = {"drop_duplicates": True} if self.drop_duplicates else {}
        return dropped | {
            "min_rating": None if self.min_rating is None else float(self.min_rating),
            "min_user_interactions": self.user_events,
            "min_item_interactions": self.item_events,
        }


@dataclass(frozen=True)
class Kept:
    """Result of the filters: `rows` bool (N,) and how many rows each filter took away."""

    rows: np.ndarray
    counts: dict[str, int] = field(default_factory=dict)


def apply_filters(users: np.ndarray, items: np.ndarray, rating: np.ndarray | None, filters: Filters) -> Kept:
    """Rows that pass all filters.

    `users` and `items` are integer codes (N,), `rating` float64 (N,) with NaN for none. Raises
    DataError, with the filter, its value and the rows before and after, when nothing is left.
    """
    rows = np.ones(len(users), dtype=bool)
    counts: dict[str, int] = {}
    if filters.min_rating is not None:
        if rating is None:
            raise DataError(
                f"min_rating={filters.min_rating} needs interactions with a rating column; if it has another "
                "name pass columns={'rating': NAME} (--rating-col NAME)"
            )
        rows = np.asarray(rating >= filters.min_rating)
        counts["below_min_rating"] = _removed("min_rating", filters.min_rating, len(rows), int(rows.sum()))
    if max(filters.user_events, filters.item_events) > 1:
        before = int(rows.sum())
        index = np.flatnonzero(rows)
        core = k_core(users[index], items[index], filters.user_events, filters.item_events)
        rows = np.zeros_like(rows)
        rows[index[core]] = True
        counts["below_min_interactions"] = _removed(*_core_name(filters), before, int(core.sum()))
    return Kept(rows, counts)


def k_core(users: np.ndarray, items: np.ndarray, user_events: int, item_events: int) -> np.ndarray:
    """Mask bool (N,) of the largest subset with `user_events` per user and `item_events` per item.

    Each round counts both sides at once and drops what is short of either; every row dropped
    could not be in any such subset, so the rounds end at the one fixed point.
    """
    index = np.arange(len(users))
    n_users = int(users.max(initial=-1)) + 1
    n_items = int(items.max(initial=-1)) + 1
    while True:
        per_user = np.bincount(users[index], minlength=n_users)
        per_item = np.bincount(items[index], minlength=n_items)
        good = (per_user >= user_events)[users[index]] & (per_item >= item_events)[items[index]]
        if good.all():
            break
        index = index[good]
    mask = np.zeros(len(users), dtype=bool)
    mask[index] = True
    return mask


def _core_name(filters: Filters) -> tuple[str, Any]:
    """Name and value of the k-core as the user set it."""
    if filters.min_user_interactions is None and filters.min_item_interactions is None:
        return "min_interactions", filters.min_interactions
    return "min_user_interactions, min_item_interactions", f"{filters.user_events}, {filters.item_events}"


def _removed(name: str, value: Any, before: int, after: int) -> int:
    if after == 0:
        raise DataError(f"filter {name}={value} leaves nothing ({before:,} rows before, 0 after); lower it")
    return before - after
