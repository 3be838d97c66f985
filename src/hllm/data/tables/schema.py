"""Canonical tables: one set of column names and types for everything that comes in.

Whatever the user holds (pandas, polars, Arrow) becomes polars with

    interactions  user_id, item_id (Int64 or String), timestamp (Int64, exact), rating (Float64, optional)
    items         item_id, text columns (String), any others
    users         user_id, any others

Identifiers keep the type that the user gave them: integers stay integers, strings stay
strings with every zero. A value that cannot be used is a DataError that names the column,
the value and its row (rows are counted from 0); what can be repaired is counted instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hllm.data.tables.attributes import attribute
from hllm.data.tables.columns import canonical_ids, canonical_ratings, canonical_times, count
from hllm.data.tables.frames import to_polars
from hllm.data.tables.identifiers import agreeing_ids, check_shared
from hllm.data.tables.values import id_list
from hllm.errors import ConfigError, DataError, nearest, unknown

if TYPE_CHECKING:
    import polars as pl

USER_ID, ITEM_ID, TIMESTAMP, RATING = "user_id", "item_id", "timestamp", "rating"

REQUIRED = {
    "interactions": (USER_ID, ITEM_ID, TIMESTAMP),
    "items": (ITEM_ID,),
    "users": (USER_ID,),
}
UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000, "index": 1}
"""Ticks in a second for each time unit; "index" is a position without a clock, read as seconds."""

# Names under which other systems publish these columns; used to guess, never to rename silently.
ALIASES = {
    USER_ID: ("user", "userid", "uid", "reviewerid", "customerid", "visitorid", "sessionid"),
    ITEM_ID: ("item", "itemid", "iid", "movieid", "movie", "asin", "parentasin", "productid", "bookid"),
    TIMESTAMP: ("time", "ts", "date", "datetime", "unixreviewtime", "eventtime", "createdat", "position"),
    RATING: ("rating", "score", "stars", "overall", "label"),
}

FLAGS = {USER_ID: "--user-col", ITEM_ID: "--item-col", TIMESTAMP: "--time-col", RATING: "--rating-col"}


@dataclass
class Tables:
    """Canonical tables in file order, with what was met on the way.

    `items` is None where there is no catalogue; `text_fields` are its text columns in prompt
    order; `counts` sums up what was repaired (`{"duplicate_items": 3}`) and `notes` holds
    sentences to say once.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame | None = None
    users: pl.DataFrame | None = None
    text_fields: list[str] = field(default_factory=list)
    time_unit: str = "s"
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def to_tables(
    interactions: Any,
    items: Any = None,
    users: Any = None,
    *,
    columns: Mapping[str, str] | None = None,
    text_fields: Sequence[str] | None = None,
    time_unit: str | None = None,
    text_ids: bool | Collection[str] = False,
    cleaned: bool = False,
    item_key: str | None = None,
    user_key: str | None = None,
) -> Tables:
    """Turn tables of any kind into canonical ones whose identifiers agree with each other.

    `columns` maps canonical names to the user's (`{"user_id": "userId"}`); `item_key` and
    `user_key` name the identifiers in `items` and `users`, by default as in the interactions or by
    the usual name. `text_fields` defaults to every text column of `items`. `time_unit` defaults to
    the unit of datetime columns, else to a guess from the magnitude, which goes into the notes.
    `text_ids` names the tables that come from files without types (True: all): there an identifier
    is Int64 where every value of it, in every table, is a whole number ("7" or "7.0", not "007").
    `cleaned` says that texts and numbers are as they should be: they have been through `clean_text`,
    or are to stay as they are published.

    Of items given twice the first with a text is kept, of users the first.

    Raises DataError for missing columns, missing or unusable values, and identifiers of the
    tables that cannot belong together; ConfigError for an unknown unit.
    """
    check_unit(time_unit)
    if not isinstance(columns, Mapping | None):
        raise ConfigError(
            f"columns={columns!r} must map names to yours, for example {{'item_id': 'movieId'}}"
        )
    if text_fields is not None:
        text_fields = [str(name) for name in id_list(text_fields, "text_fields", "column names")]
    counts: dict[str, int] = {}
    events, unit = _interactions(to_polars(interactions), columns, time_unit, counts)
    result = Tables(events, counts=counts)
    keys = {"items": item_key, "users": user_key}
    for name, frame in (("items", items), ("users", users)):
        if frame is not None:
            data = to_polars(frame)
            keys[name] = key = keys[name] or usual_key(data, REQUIRED[name][0], columns)
            own = {**(columns or {}), REQUIRED[name][0]: key}
            setattr(result, name, canonical(data, name, columns=own, counts=counts))
    _agree(result, columns or {}, tuple(REQUIRED) if text_ids is True else text_ids or ())
    for name in ("items", "users"):
        frame = getattr(result, name)
        if frame is None:
            continue
        key, label = REQUIRED[name][0], str(keys[name])
        asked = text_fields if name == "items" else None
        frame, fields = _attributes(frame, name, asked, result, label, cleaned)
        setattr(result, name, _first_of_each(frame, key, fields if name == "items" else ()))
        count(counts, f"duplicate_{name}", frame.height - getattr(result, name).height)
        if name == "items":
            result.text_fields = fields
    if items is None and text_fields:
        raise DataError(f"text fields {list(text_fields)} need an items table; pass one with these columns")
    result.time_unit = unit or guess_time_unit(events[TIMESTAMP], result.notes)
    return result


def usual_key(frame: pl.DataFrame, usual: str, columns: Mapping[str, str] | None) -> str:
    """The identifier of items or users: as the interactions name theirs, or else by its usual name."""
    return next((n for n in ((columns or {}).get(usual), usual) if n in frame.columns), usual)


def _agree(tables: Tables, columns: Mapping[str, str], untyped: Collection[str]) -> None:
    """Give each identifier one type in all tables, and say where they hardly share any."""
    for name, key in (("items", ITEM_ID), ("users", USER_ID)):
        frame: pl.DataFrame | None = getattr(tables, name)
        events = tables.interactions
        found = [("interactions", events[key])] + ([] if frame is None else [(name, frame[key])])
        ids = agreeing_ids([i for _, i in found], [n for n, _ in found], untyped, columns.get(key, key))
        tables.interactions = events.with_columns(ids[0])
        if frame is not None:
            setattr(tables, name, frame.with_columns(ids[1]))
        if frame is not None and frame.height:
            labels = (f"{columns.get(key, key)} of the interactions", f"the {name} table")
            tables.notes += check_shared(ids[0], ids[1], *labels)


def canonical(
    frame: Any,
    table: str = "interactions",
    *,
    columns: Mapping[str, str] | None = None,
    counts: dict[str, int] | None = None,
) -> pl.DataFrame:
    """One table (pandas, polars, Arrow) as polars with canonical names and identifiers, rows in order.

    `table` is "interactions", "items" or "users". Datetimes become Int64 in their own unit.
    Use `to_tables` for tables that belong together: it also makes their identifiers agree, and
    the other columns canonical.
    """
    if table not in REQUIRED:
        raise ConfigError(unknown("table", table, REQUIRED))
    data = to_polars(frame)
    if table == "interactions":
        return _interactions(data, columns, None, counts)[0]
    (key,) = REQUIRED[table]
    own = _find(data, table, columns, (key,))[key]
    return data.select(
        canonical_ids(data[own], table, counts).rename(key), *(data.drop(own, key, strict=False))
    )


def new_items(
    frame: Any, own: pl.DataFrame, text_fields: Collection[str]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """A table of more items, read as `to_tables` reads the catalogue, and what was repaired in it.

    `own` is the catalogue, whose columns and type of identifier the new ones get. DataError as for
    `to_tables`.
    """
    import polars as pl

    counts: dict[str, int] = {}
    items = canonical(frame, "items", counts=counts)
    items = items.select(c for c in items.columns if c in own.columns)
    ids = agreeing_ids([own[ITEM_ID], items[ITEM_ID]], ["catalogue", "new items"], (), ITEM_ID)[1]
    asked = [c for c in items.columns if own.schema[c] == pl.String and c != ITEM_ID]
    items, _ = _attributes(
        items.with_columns(ids), "items", asked, Tables(items, counts=counts), ITEM_ID, False
    )
    unique = _first_of_each(items, ITEM_ID, [c for c in items.columns if c in text_fields])
    count(counts, "duplicate_items", items.height - unique.height)
    return unique, counts


def guess_time_unit(times: pl.Series, notes: list[str]) -> str:
    """Guess the unit of integer `times` from their magnitude and say so in `notes`.

    Seconds stay below 1e11 (the year 5138), milliseconds below 1e14, microseconds below 1e17.
    Times that would all lie before March 1973 in seconds are positions rather than clock times.
    """
    largest = max((abs(int(v)) for v in (times.min(), times.max()) if v is not None), default=0)  # type: ignore[arg-type]
    if largest < 10**8:
        notes.append(f"timestamps up to {largest:,} look like positions, not clock times: time_unit=index")
        return "index"
    unit = next((u for u, limit in (("s", 10**11), ("ms", 10**14), ("us", 10**17)) if largest < limit), "ns")
    if unit != "s":
        notes.append(f"timestamps up to {largest:,} look like clock times in {unit}: time_unit={unit}")
    return unit


def check_unit(unit: str | None) -> None:
    """Raise ConfigError unless `unit` is None or one of the known time units."""
    if unit is not None and unit not in tuple(UNITS_PER_SECOND):
        raise ConfigError(unknown("time unit", unit, UNITS_PER_SECOND))


# ----------------------------------------------------------------------------- columns


def _find(
    frame: pl.DataFrame, table: str, columns: Mapping[str, str] | None, wanted: Sequence[str]
) -> dict[str, str]:
    """The user's name of every `wanted` column that is there; DataError for those that must be."""
    known = (USER_ID, ITEM_ID, TIMESTAMP, RATING)
    mapping = dict(columns or {})
    for name in mapping:
        if name not in known:
            raise ConfigError(unknown("column", name, known))
    # A mapping serves all tables at once: items need no user column, though it names one.
    chosen = {name: mapping.get(name, name) for name in wanted}
    needed = [n for n in wanted if n in REQUIRED[table] or n in mapping]
    missing = [(n, chosen[n]) for n in needed if chosen[n] not in frame.columns]
    if missing:
        raise DataError(_missing_message(table, missing, frame.columns))
    return {name: column for name, column in chosen.items() if column in frame.columns}


def _missing_message(table: str, missing: list[tuple[str, str]], found: Sequence[str]) -> str:
    """The missing columns, those found, and which of them are probably meant."""
    absent = ", ".join(repr(column) for _, column in missing)
    text = f"{table} table has no column {absent}; found: {', '.join(found) or 'no columns'}"
    names = {name: _likely(name, column, found) for name, column in missing}
    if list(names) == [TIMESTAMP] and names[TIMESTAMP] is None:
        return f"{text}. Rows that are already in order can use their row number as {TIMESTAMP}"
    flags = " ".join(f"{FLAGS[name]} {column or 'NAME'}" for name, column in names.items())
    pairs = ", ".join(
        f"{name!r}: {column!r}" if column else f"{name!r}: NAME" for name, column in names.items()
    )
    both = f"columns={{{pairs}}} ({flags})"
    return (
        f"{text}. Did you mean {both}?" if all(names.values()) else f"{text}. Say which is which with {both}"
    )


def _likely(name: str, column: str, found: Sequence[str]) -> str | None:
    """The found column that most likely is `name`: a known alias first, then the nearest spelling."""
    plain = {re.sub(r"[^a-z]", "", c.split(":")[0].lower()): c for c in reversed(found)}
    for alias in (name.replace("_", ""), *ALIASES[name]):
        if alias in plain:
            return plain[alias]
    hint = nearest(column, found)
    return hint.split("'")[1] if "'" in hint else None


def _interactions(
    frame: pl.DataFrame, columns: Mapping[str, str] | None, unit: str | None, counts: dict[str, int] | None
) -> tuple[pl.DataFrame, str | None]:
    names = _find(frame, "interactions", columns, (USER_ID, ITEM_ID, TIMESTAMP, RATING))
    if frame.height == 0:
        raise DataError("interactions table has no rows")
    times, unit = canonical_times(frame[names[TIMESTAMP]], unit)
    out = [canonical_ids(frame[names[key]], "interactions", counts).rename(key) for key in (USER_ID, ITEM_ID)]
    out.append(times.rename(TIMESTAMP))
    if RATING in names:
        out.append(canonical_ratings(frame[names[RATING]]).rename(RATING))
    return frame.select(out), unit


def _attributes(
    frame: pl.DataFrame,
    table: str,
    text_fields: Sequence[str] | None,
    result: Tables,
    key: str,
    cleaned: bool,
) -> tuple[pl.DataFrame, list[str]]:
    """The table with its other columns made canonical, and its text columns in prompt order.

    `key` is the user's name of the identifier, for the message about a column that is not there.
    """
    import polars as pl

    own = REQUIRED[table][0]
    fields = None if text_fields is None else list(dict.fromkeys(own if n == key else n for n in text_fields))
    for name in fields or ():
        if name not in frame.columns:
            found = [key if c == own else c for c in frame.columns]
            raise DataError(
                f"{table} table has no text column {name!r}{nearest(name, found)}; found: {', '.join(found)}"
            )
    columns = [
        attribute(frame[name], table, name in (fields or ()), result.counts, result.notes, cleaned)
        for name in frame.columns
        if name != own
    ]
    frame = pl.DataFrame([frame[own], *(c for c in columns if c is not None)])
    if fields is None:
        fields = [c for c, kind in frame.schema.items() if kind == pl.String and c != own]
    return frame, fields


def _first_of_each(frame: pl.DataFrame, key: str, text_fields: Sequence[str]) -> pl.DataFrame:
    """Of rows with the same `key` the first that has a text, or else the first; rows stay in order."""
    import polars as pl

    if not frame[key].is_duplicated().any():
        return frame
    fields = [c for c in text_fields if c != key]
    textless = pl.all_horizontal(pl.col(fields).is_null()) if fields else pl.lit(False)
    rows = frame.select(key, textless=textless).with_row_index("row")
    best = rows.sort("textless", maintain_order=True).unique(key, keep="first", maintain_order=True)
    return frame[best["row"].sort()]
