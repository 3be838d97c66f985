"""A dataset with later events: histories grow, and what is held out stays held out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.fingerprint import dataset_fingerprint, items_fingerprint
from hllm.data.tables.columns import canonical_times
from hllm.data.tables.events import owners
from hllm.data.tables.frames import to_polars
from hllm.data.tables.identifiers import agreeing_ids
from hllm.data.tables.schema import (
    ITEM_ID,
    TIMESTAMP,
    UNITS_PER_SECOND,
    USER_ID,
    canonical,
    guess_time_unit,
)
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.dataset import Dataset


@dataclass(frozen=True)
class Grown:
    """The dataset with the new events, and what became of them."""

    data: Dataset
    events: int  # that are new
    users: int
    known: int  # that the histories had already
    unknown_items: int  # events that were left out, since the catalogue lacks their item


def read_events(data: Dataset, table: Any) -> pl.DataFrame:
    """`user_id, item_id, timestamp` of any table, with the dataset's types of identifiers and unit of time.

    Raises DataError for missing columns, and for ids or times that cannot be the dataset's.
    """
    import polars as pl

    raw = to_polars(table)
    frame = canonical(raw, "interactions")
    names = ["dataset", "new interactions"]
    users = agreeing_ids([data.users[USER_ID], frame[USER_ID]], names, (), USER_ID)[1]
    items = agreeing_ids([data.items[ITEM_ID], frame[ITEM_ID]], names, (), ITEM_ID)[1]
    times, unit = canonical_times(raw[TIMESTAMP], None)
    return pl.DataFrame({USER_ID: users, ITEM_ID: items, TIMESTAMP: in_unit_of(data, times, unit)})


def in_unit_of(data: Dataset, times: pl.Series, unit: str | None) -> pl.Series:
    """Int64 `times` of `unit` (None: plain numbers) in the dataset's unit. Raises DataError where they cannot be."""
    own = data.meta["time_unit"]
    guessed = unit or guess_time_unit(times, [])
    if unit is None and "index" in (own, guessed) and own != guessed:
        guessed = own  # small numbers may be anything
    if guessed == own:
        return times
    if unit is None or "index" in (own, guessed):
        largest = times.to_numpy().max()
        raise DataError(
            f"the new timestamps, up to {largest}, look like times in {guessed}, and the dataset's are in "
            f"{own}; convert them"
        )
    ours, theirs = UNITS_PER_SECOND[own], UNITS_PER_SECOND[guessed]
    return times * (ours // theirs) if ours >= theirs else times // (theirs // ours)


def grown(data: Dataset, events: pl.DataFrame) -> Grown:
    """The dataset with `events` (see `read_events`) in its histories, users who are new appended.

    Held-out events stay what they were: the same users' same events, never trained on. New events may be trained on,
    unless the user is held out altogether (split user-ratio), or the item is one held out of this user. An event that a
    history has already, to the moment, is not added again, so that the same table twice changes nothing.
    """
    rows, names = _rows(data, events)
    tokens = _tokens(data, events)
    found = tokens > 0
    rows, tokens, times = rows[found], tokens[found], events[TIMESTAMP].to_numpy()[found]
    fresh = ~_in_histories(data, rows, tokens, times)
    known = int((~fresh).sum())
    rows, tokens, times = rows[fresh], tokens[fresh], times[fresh]
    # Users whose every event is left out are not appended.
    used = np.unique(rows[rows >= data.n_users])
    place = np.full(data.n_users + len(names), -1)
    place[: data.n_users], place[used] = np.arange(data.n_users), data.n_users + np.arange(len(used))
    names = names[used - data.n_users]
    bigger = _merged(data, place[rows], tokens, times, names) if len(rows) else data
    return Grown(bigger, len(rows), len(used), known, int((~found).sum()))


def _rows(data: Dataset, events: pl.DataFrame) -> tuple[np.ndarray, pl.Series]:
    """Row int64 of each event's user, new ones from n_users on; and the ids of the new ones, as first met."""
    import polars as pl

    own = pl.DataFrame({USER_ID: data.users[USER_ID]}).with_row_index("row")
    unknown = events[USER_ID].unique(maintain_order=True)
    unknown = unknown.filter(~unknown.is_in(own[USER_ID].implode())).sort()
    more = pl.DataFrame({USER_ID: unknown}).with_row_index("row", offset=data.n_users)
    rows = events.join(pl.concat([own, more]), on=USER_ID, how="left", maintain_order="left")["row"]
    return rows.to_numpy().astype(np.int64), unknown


def _tokens(data: Dataset, events: pl.DataFrame) -> np.ndarray:
    """Token int64 of each event's item, 0 where the catalogue lacks it."""
    import polars as pl

    own = pl.DataFrame({ITEM_ID: data.items[ITEM_ID]}).with_row_index("token", offset=1)
    tokens = events.join(own, on=ITEM_ID, how="left", maintain_order="left")["token"]
    return tokens.fill_null(0).to_numpy().astype(np.int64)


def _in_histories(data: Dataset, rows: np.ndarray, tokens: np.ndarray, times: np.ndarray) -> np.ndarray:
    """bool (n,): the history has this very event already; of n equal events and m in the history, the first m."""
    import polars as pl

    names = ["row", "token", "time"]
    ours = pl.DataFrame(
        [owners(data.offsets), np.asarray(data.tokens, np.int64), np.asarray(data.times)], names
    )
    ours = ours.group_by(names).len("had")
    theirs = pl.DataFrame([rows, tokens, times], names).with_columns(nth=pl.int_range(pl.len()).over(names))
    joined = theirs.join(ours, on=names, how="left", maintain_order="left")
    return joined.select((pl.col("nth") < pl.col("had").fill_null(0)).alias("known"))["known"].to_numpy()


def _merged(
    data: Dataset, rows: np.ndarray, tokens: np.ndarray, times: np.ndarray, new_users: pl.Series
) -> Dataset:
    import polars as pl

    own = owners(data.offsets)
    n_old, n_users = len(own), data.n_users + len(new_users)
    all_rows, all_times = np.append(own, rows), np.append(np.asarray(data.times), times)
    all_tokens = np.append(np.asarray(data.tokens), tokens.astype(np.int32))
    order = np.lexsort((all_times, all_rows))  # stable: at equal times old events come first
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    mask = np.append(np.asarray(data.train_mask), _may_train(data, own, rows, tokens))
    counts = np.bincount(all_rows, minlength=n_users)
    arrays: dict[str, Any] = {
        "tokens": np.ascontiguousarray(all_tokens[order]),
        "times": np.ascontiguousarray(all_times[order]),
        "offsets": np.append(0, np.cumsum(counts)).astype(np.int64),
        "train_mask": mask[order],
    }
    queries = {name: np.sort(place[:n_old][np.asarray(at)]) for name, at in data.queries.items()}
    users = pl.concat([data.users, pl.DataFrame({USER_ID: new_users})], how="diagonal").select(
        data.users.columns
    )
    items = items_fingerprint(data.items, data.meta["text_fields"])
    meta = {
        **data.meta,
        "n_users": n_users,
        "n_interactions": len(order),
        "updated": int(data.meta.get("updated", 0)) + 1,
        "fingerprint": dataset_fingerprint(items, users[USER_ID], data.meta, arrays | queries),
    }
    frames = {"items": data.items, "users": users}
    return replace(data, path=None, meta=meta, **arrays, queries=queries, frames=frames, files={})


def _may_train(data: Dataset, own: np.ndarray, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """bool (n,): whether a new event may be trained on."""
    held_out = np.concatenate([np.asarray(at, dtype=np.int64) for at in data.queries.values()])
    width = data.n_catalogue + 1
    pairs = own[held_out] * width + np.asarray(data.tokens, np.int64)[held_out]
    allowed = ~np.isin(rows * width + tokens, pairs)
    if data.meta["split"]["name"] == "user-ratio":
        trained = np.zeros(max(data.n_users, int(rows.max()) + 1), dtype=bool)
        trained[data.n_users :] = True
        trained[own[np.asarray(data.train_mask)]] = True
        allowed &= trained[rows]
    return allowed
