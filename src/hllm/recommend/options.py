"""Rules as users give them: durations, moments, `brand:2`, and per-user tables, read and checked."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from hllm.arguments import flag, is_number
from hllm.data.tables.frames import to_polars
from hllm.data.tables.schema import ITEM_ID, UNITS_PER_SECOND, USER_ID
from hllm.errors import ConfigError, DataError, nearest, unknown
from hllm.recommend.arrange import Capped
from hllm.recommend.only import labels_of
from hllm.recommend.times import times_of

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
FROM, EXPIRES = "available_from", "expires"


class RuleOptions(TypedDict, total=False):
    """Rules of a request beside candidates, `exclude` and `keep_seen`.

    only_items          item ids: nothing else is recommended
    exclude_seen_since  "30d" (s, min, h, d, w; a plain number where times are positions): of the history only what
                        was seen this long before `at` is left out, older items may come back
    per_user            table user_id, item_id, allow (true or false): with an allowed item a user gets allowed
                        items alone; what is not allowed the user never gets
    at                  moment of the request, for `exclude_seen_since` and for the item columns available_from
                        and expires: a time in the dataset's unit, a datetime or ISO date, "now"; by default the
                        time of the dataset's latest event, so that equal requests have equal answers
    diversify           "brand:2": at most 2 items of each value of the item column brand; of a field with several,
                        such as "Comedy, Drama" or "Comedy|Drama", each counts
    diversity           0 to 1: weight of unlikeness against score in maximal marginal relevance
    """

    only_items: Sequence[Any] | None
    exclude_seen_since: str | None
    per_user: Any
    at: Any
    diversify: str | None
    diversity: float | None


class SearchOptions(RuleOptions, total=False):
    """Rules, a text to search for, and how to search.

    text         free text that is searched for together with the history, through the run's item LLM
    text_weight  0 (history alone) to 1 (text alone), .5 by default
    approximate  True: by the run's index (`hllm index RUN`), False: exactly; by default by the index only where the
                 run has one and more than a million items compete
    """

    text: str | None
    text_weight: float | None
    approximate: bool | None


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for a rule that does not exist, naming the nearest one, and for values that cannot be."""
    for name in options:
        if name not in SearchOptions.__annotations__:
            raise ConfigError(unknown("rule", name, SearchOptions.__annotations__))
    if options.get("approximate") is not None:
        flag("approximate", options["approximate"])
    if options.get("text_weight") is not None and options.get("text") is None:
        raise ConfigError("text_weight weighs a text against the history; give text (--text) too")
    weight = options.get("diversity")
    if weight is not None and not (is_number(weight) and 0 <= weight <= 1):
        raise ConfigError(
            f"diversity={weight!r}: a number from 0 (scores alone) to 1 (unlikeness alone), for example 0.3"
        )


def span_of(data: Dataset, text: Any) -> int:
    """A duration such as "30d" in the dataset's unit. Raises ConfigError for another form."""
    unit = data.meta["time_unit"]
    found = re.fullmatch(r"\s*(\d{1,9})\s*([a-z]*)\s*", str(text))
    if unit == "index" and found and not found[2]:
        return int(found[1])
    if unit == "index":
        raise ConfigError(
            f"{text!r}: this dataset's times are positions; give a number of them, for example 100"
        )
    if not found or found[2] not in SECONDS:
        raise ConfigError(
            f"{text!r} is no duration; a whole number and one of {', '.join(SECONDS)}, for example 30d"
        )
    return int(found[1]) * SECONDS[found[2]] * UNITS_PER_SECOND[unit]


def moment_of(data: Dataset, at: Any) -> int:
    """A moment in the dataset's unit; None: that of its latest event. Raises DataError for what is none."""
    if at is None:
        return int(np.asarray(data.times).max(initial=0))
    unit = data.meta["time_unit"]
    if at == "now":
        if unit == "index":
            raise ConfigError("at='now': this dataset's times are positions; give a position")
        return int(time.time()) * UNITS_PER_SECOND[unit]
    try:
        return int(times_of(data, [int(at) if str(at).removeprefix("-").isdecimal() else at], 0)[0])
    except DataError as err:
        raise DataError(f"at={at!r} is no moment: a time in {unit}, a date, or now") from err


def availability(data: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """First and last+1 moment int64 (n_catalogue,) of each item; None where the items have no such columns.

    Raises DataError for values that are no times.
    """
    found = [name for name in (FROM, EXPIRES) if name in data.items.columns]
    if not found:
        return None
    limits = np.iinfo(np.int64)
    first, end = np.full(data.n_catalogue, limits.min), np.full(data.n_catalogue, limits.max)
    for name, into in ((FROM, first), (EXPIRES, end)):
        if name not in found:
            continue
        column = data.items[name]
        rows = np.flatnonzero(column.is_not_null().to_numpy())
        given = column.drop_nulls()
        try:
            into[rows] = [moment_of(data, value) for value in given.to_list()]
        except DataError as err:
            raise DataError(f"items column {name}: {err}") from err
    return first, end


def capped(data: Dataset, text: Any) -> Capped:
    """What `diversify` asks for: labels of a column by token, and at most so many items of each.

    Labels are those that `only` knows: of "Comedy, Drama" there are two, and each counts.
    """
    import polars as pl

    name, _, number = str(text).rpartition(":")
    if not name or not re.fullmatch(r"\d{1,9}", number) or int(number) < 1:
        raise ConfigError(f"diversify={text!r}: a column and a number from 1, for example brand:2")
    items = data.items
    if name not in items.columns or name == ITEM_ID:
        others = [column for column in items.columns if column != ITEM_ID]
        raise ConfigError(
            f"diversify={text!r}: the items have no column {name!r}{nearest(name, others)}; "
            f"theirs: {', '.join(others) or 'none'}"
        )
    labels = labels_of(items[name]).list.unique().list.drop_nulls()
    labels = labels.list.eval(pl.element().filter(pl.element() != "")).fill_null([])
    codes = labels.explode(empty_as_null=False).rank("dense").to_numpy().astype(np.int64)
    ends = labels.list.len().to_numpy().astype(np.int64).cumsum()
    return Capped(codes, np.concatenate(([0, 0], ends)), int(number))


def user_tables(
    data: Dataset, table: Any, names: Sequence[Any]
) -> tuple[dict[int, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Allowed tokens by number of the query, and denied (rows, tokens) int64, of a table user_id, item_id, allow.

    Rows of users who are not asked for are left out, whatever their items. Raises DataError for a missing column,
    a value of `allow` that is neither true nor false, and an unknown item.
    """
    import polars as pl

    frame = to_polars(table)
    if missing := [c for c in (USER_ID, ITEM_ID, "allow") if c not in frame.columns]:
        raise DataError(
            f"the per-user table has no column {', '.join(missing)} (its columns: {', '.join(frame.columns)}); "
            "it needs user_id, item_id and allow (true or false)"
        )
    frame = frame.select(USER_ID, ITEM_ID, "allow")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(str(name), []).append(row)
    asked = frame.filter(pl.col(USER_ID).cast(pl.String).is_in(list(rows)))
    allowed: dict[int, list[int]] = {}
    denied: list[tuple[int, int]] = []
    for user, item, allow in asked.iter_rows():
        token = data.token_of(item)
        flag = FLAGS.get(str(allow).lower())
        if flag is None:
            raise DataError(f"allow={allow!r} of user {user!r}: true or false")
        for row in rows[str(user)]:
            if flag:
                allowed.setdefault(row, []).append(token)
            else:
                denied.append((row, token))
    hidden = np.array(denied, dtype=np.int64).reshape(-1, 2)
    return {row: np.unique(tokens) for row, tokens in allowed.items()}, (hidden[:, 0], hidden[:, 1])


FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
