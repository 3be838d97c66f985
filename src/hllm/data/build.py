"""Canonical tables to a dataset: filters, vocabulary, history order, split, fingerprint.

Everything is done on integer codes with numpy: 22 million events fit in a few gigabytes, and
no step depends on the number of threads, so two runs give identical bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from hllm.data.fingerprint import fingerprints
from hllm.data.folder import FORMAT, VERSION
from hllm.data.splits import TIES, Packed, Split, SplitOptions, history_order, make_split
from hllm.data.tables.events import duplicate_events, owners, repeated_events, tied_events
from hllm.data.tables.filters import Filters, apply_filters
from hllm.data.tables.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, Tables
from hllm.data.tables.vocab import compress, encode, item_vocabulary
from hllm.errors import ConfigError, unknown

if TYPE_CHECKING:
    import polars as pl


class DatasetOptions(TypedDict, total=False):
    """How tables become a dataset. See `Filters`, `SplitOptions` and `history_order`."""

    min_rating: float | None
    min_interactions: int
    min_user_interactions: int | None
    min_item_interactions: int | None
    split: str
    seed: int
    ratio: tuple[float, float, float] | None
    targets: str | None
    cutoffs: tuple[int | float | str, int | float | str] | None
    cold_share: float | None
    ties: str
    drop_duplicates: bool


@dataclass(frozen=True)
class Built:
    """The parts of a dataset before it has a folder."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    frames: dict[str, pl.DataFrame]


def build(tables: Tables, name: str, options: DatasetOptions) -> Built:
    """Build a dataset from canonical tables.

    Raises ConfigError for unknown or contradictory options and DataError for data that cannot
    be used under them, for example a filter that leaves nothing.
    """
    filters, split_options, ties = check_options(options)
    counts = {**tables.counts, "rows": tables.interactions.height}
    events, user_codes, item_codes, user_ids, item_ids = _filtered(tables.interactions, filters, counts)
    times = events[TIMESTAMP].to_numpy()
    order = history_order(user_codes, times, item_codes, ties, split_options.seed)
    packed = Packed(
        tokens=item_codes[order] + np.int32(1),
        times=np.ascontiguousarray(times[order]),
        offsets=np.append(0, np.cumsum(np.bincount(user_codes))).astype(np.int64),
        n_candidates=len(item_ids),
        time_unit=tables.time_unit,
    )
    split = make_split(packed, split_options)
    items = _items(item_ids, tables, counts)
    users = _users(user_ids, tables, counts)
    counts |= split.counts | _event_counts(packed, split)
    frames = {"interactions": events[order].rechunk(), "items": items, "users": users}
    arrays = {
        "tokens": packed.tokens,
        "times": packed.times,
        "offsets": packed.offsets,
        "train_mask": split.train_mask,
        **{name: positions.astype(np.int64) for name, positions in split.queries.items()},
    }
    identity = {
        "split": split.options,
        "ties": ties,
        "filters": filters.as_dict(),
        "time_unit": tables.time_unit,
    }
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "n_users": len(user_ids),
        "n_candidates": len(item_ids),
        "n_catalogue": items.height,
        "n_interactions": len(packed.tokens),
        **fingerprints(frames, tables.text_fields, arrays, identity),
        **identity,
        "counts": counts,
        "evaluated_users": {n: _distinct_users(packed, at) for n, at in split.queries.items()},
        "targets": {n: len(at) for n, at in split.queries.items()},
        "text_fields": list(tables.text_fields),
        "item_id_type": _id_type(items[ITEM_ID]),
        "user_id_type": _id_type(users[USER_ID]),
        "notes": [*_notes(tables, split), *_rating_note(events, filters)],
    }
    return Built(meta, arrays, frames)


def check_options(options: DatasetOptions) -> tuple[Filters, SplitOptions, str]:
    """The options as filters, split and tie rule, with the defaults of those not given.

    Needs no data: call it before long work. Raises ConfigError for an unknown option, a value
    that cannot be, or options that contradict each other.
    """
    for key in options:
        if key not in DatasetOptions.__annotations__:
            raise ConfigError(unknown("dataset option", key, DatasetOptions.__annotations__))
    given: dict[str, Any] = dict(options)
    filters = Filters(**{k: v for k, v in given.items() if k.startswith("min_") or k == "drop_duplicates"})
    names = ("seed", "ratio", "targets", "cutoffs", "cold_share")
    split = SplitOptions(given.get("split", "leave-one-out"), **{k: given[k] for k in names if k in given})
    ties = given.get("ties", TIES[0])
    if ties not in TIES:
        raise ConfigError(unknown("ties", ties, TIES))
    return filters, split, ties


def _filtered(
    events: pl.DataFrame, filters: Filters, counts: dict[str, int]
) -> tuple[pl.DataFrame, np.ndarray, np.ndarray, pl.Series, pl.Series]:
    """The rows that pass, their codes, and the identifiers behind the codes (sorted)."""
    if filters.drop_duplicates:
        before = events.height
        events = events.unique([USER_ID, ITEM_ID, TIMESTAMP], keep="first", maintain_order=True)
        counts["dropped_duplicates"] = before - events.height
    user_ids, users = encode(events[USER_ID])
    item_ids, items = encode(events[ITEM_ID])
    rating = events[RATING].to_numpy() if RATING in events.columns else None
    kept = apply_filters(users, items, rating, filters)
    counts |= kept.counts
    if not kept.rows.all():
        index = np.flatnonzero(kept.rows)
        used_users, users = compress(users[index], len(user_ids))
        used_items, items = compress(items[index], len(item_ids))
        events, user_ids, item_ids = events[index], user_ids[used_users], item_ids[used_items]
    return events, users, items, user_ids, item_ids


def _items(candidates: pl.Series, tables: Tables, counts: dict[str, int]) -> pl.DataFrame:
    """Items in token order with their metadata; what is missing is counted."""
    import polars as pl

    catalogue = tables.items
    ids = item_vocabulary(candidates, None if catalogue is None else catalogue[ITEM_ID]).rename(ITEM_ID)
    items = pl.DataFrame({ITEM_ID: ids})
    if catalogue is not None:
        known = candidates.is_in(catalogue[ITEM_ID].implode()).sum()
        counts["items_without_metadata"] = len(candidates) - int(known)
        items = items.join(catalogue, on=ITEM_ID, how="left", maintain_order="left")
    counts["catalogue_only_items"] = items.height - len(candidates)
    blank = [pl.col(c).fill_null("").str.strip_chars() == "" for c in tables.text_fields]
    textless = pl.all_horizontal(blank) if blank else pl.lit(True)
    counts["items_without_text"] = int(items.select(textless.alias("none"), ITEM_ID)["none"].sum())
    return items.rechunk()


def _users(ids: pl.Series, tables: Tables, counts: dict[str, int]) -> pl.DataFrame:
    """Users in row order with their attributes; attributes of users without events are dropped."""
    import polars as pl

    users = pl.DataFrame({USER_ID: ids})
    if tables.users is not None:
        known = int(ids.is_in(tables.users[USER_ID].implode()).sum())
        counts["users_without_attributes"] = len(ids) - known
        counts["users_without_events"] = tables.users.height - known
        users = users.join(tables.users, on=USER_ID, how="left", maintain_order="left")
    return users.rechunk()


def _event_counts(data: Packed, split: Split) -> dict[str, int]:
    repeated = repeated_events(data.tokens, data.offsets)
    return {
        "duplicate_interactions": duplicate_events(data.tokens, data.times, data.offsets),
        "tied_interactions": int(tied_events(data.times, data.offsets).sum()),
        "repeated_interactions": int(repeated.sum()),
        **{f"{n}_repeated_targets": int(repeated[at].sum()) for n, at in split.queries.items()},
    }


def _distinct_users(data: Packed, positions: np.ndarray) -> int:
    return len(np.unique(owners(data.offsets)[positions]))


def _notes(tables: Tables, split: Split) -> list[str]:
    notes = list(tables.notes)
    for name, positions in split.queries.items():
        if not len(positions):
            notes.append(f"no user can be evaluated on {name}: split {split.options['name']} found no target")
    return notes


def _rating_note(events: pl.DataFrame, filters: Filters) -> list[str]:
    """That bad ratings count as much as good ones, where there are any and nobody said so."""
    if RATING not in events.columns or filters.min_rating is not None:
        return []
    rating = events[RATING].drop_nulls().to_numpy()
    if not len(rating) or rating.min() == rating.max():
        return []
    middle = float(np.median(rating))
    return [
        f"ratings from {rating.min():g} to {rating.max():g} are all kept as positives; to keep the good ones: "
        f"min_rating={middle:g} (--min-rating {middle:g})"
    ]


def _id_type(values: pl.Series) -> str:
    return "int" if values.dtype.is_integer() else "str"
