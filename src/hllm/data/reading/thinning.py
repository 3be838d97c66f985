"""Filters that belong to a data set: ByteDance's rule for Books, and the usual k-core.

They run before the catalogue is read, so that the texts of items that nobody will see again are
never parsed. `Dataset` has its own filters, which then apply on top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hllm.data.tables.schema import ITEM_ID, USER_ID
from hllm.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import polars as pl

RULES = ("bytedance", "k-core", "none")


def thin(events: pl.DataFrame, rule: str, k: int = 5) -> pl.DataFrame:
    """The rows of `events` that `rule` keeps, in their order.

    "bytedance": rows of users and items that have at least `k` rows in the whole file, then of
    users that still have `k`. One pass: items may end below `k`. "k-core": repeated until every
    user and item has `k`. Raises ConfigError for another rule, DataError if nothing is left.
    """
    check_rule(rule, k)
    if rule == "none":
        return events
    kept = _frequent(_frequent(events, events, USER_ID, k), events, ITEM_ID, k)
    kept = _frequent(kept, kept, USER_ID, k)
    if rule == "k-core":
        kept = _core(kept, k)
    if not kept.height:
        raise DataError(
            f"filter {rule} with k={k} leaves nothing ({events.height:,} rows before, 0 after); "
            "lower k, or use --filter none"
        )
    return kept


def check_rule(rule: str, k: int) -> None:
    """ConfigError unless `rule` is one of RULES and `k` a whole number of at least 1."""
    if rule not in RULES:
        raise ConfigError(unknown("filter", rule, RULES))
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ConfigError(f"k={k!r}: must be a whole number of at least 1")


def _frequent(rows: pl.DataFrame, counted: pl.DataFrame, key: str, k: int) -> pl.DataFrame:
    """The `rows` whose `key` occurs at least `k` times in `counted`."""
    import polars as pl

    counts = counted.lazy().group_by(key).agg(pl.len().alias("n")).filter(pl.col("n") >= k).select(key)
    return rows.join(counts.collect(engine="streaming"), on=key, how="semi", maintain_order="left")


def _core(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """The k-core of what one pass has left: it contains the k-core of the whole."""
    from hllm.data.tables.filters import k_core
    from hllm.data.tables.vocab import encode

    _, users = encode(events[USER_ID])
    _, items = encode(events[ITEM_ID])
    return events.filter(k_core(users, items, k, k))
