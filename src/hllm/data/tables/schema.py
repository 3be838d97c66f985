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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hllm.data.reading.textfiles import check_width
from hllm.data.tables.columns import canonical_ids, canonical_ratings, canonical_times, first_true
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
    text_ids: bool = False,
    item_key: str | None = None,
    user_key: str | None = None,
) -> Tables:
    """Turn tables of any kind into canonical ones whose identifiers agree with each other.

    `columns` maps canonical names to the user's (`{"user_id": "userId"}`); `item_key` and
    `user_key` name the identifiers in `items` and `users` where these differ. `text_fields`
    defaults to every text column of `items`. `time_unit` defaults to the unit of datetime
    columns, else to a guess from the magnitude, which goes into the notes. `text_ids=True` is
    for tables read from text files: an identifier becomes Int64 only where every value of it,
    in every table, is written as an integer would be ("7", not "007").

    Raises DataError for missing columns, missing or unusable values, and identifiers of the
    tables that cannot belong together; ConfigError for an unknown unit.
    """
    check_unit(time_unit)
    events, unit = _interactions(to_polars(interactions), columns, time_unit)
    keys = {"items": item_key, "users": user_key}
    own = {
        name: dict(columns or {}) | ({REQUIRED[name][0]: key} if key else {}) for name, key in keys.items()
    }
    catalogue = None if items is None else canonical(items, "items", columns=own["items"])
    people = None if users is None else canonical(users, "users", columns=own["users"])
    result = Tables(events, catalogue, people)
    if text_ids:
        _type_text_ids(result)
    for name, key in (("items", ITEM_ID), ("users", USER_ID)):
        _reconcile(result, name, key, (columns or {}).get(key, key))
    for name, key in (("items", ITEM_ID), ("users", USER_ID)):
        frame = getattr(result, name)
        if frame is not None:
            unique = frame.unique(key, keep="first", maintain_order=True)
            if unique.height < frame.height:
                result.counts[f"duplicate_{name}"] = frame.height - unique.height
            setattr(result, name, unique)
    if result.items is not None:
        key = own["items"].get(ITEM_ID, ITEM_ID)
        result.items, result.text_fields = _text_columns(result.items, text_fields, key)
    elif text_fields:
        raise DataError(f"text fields {list(text_fields)} need an items table; pass one with these columns")
    result.time_unit = unit or guess_time_unit(events[TIMESTAMP], result.notes)
    return result


def canonical(
    frame: Any, table: str = "interactions", *, columns: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """One table (pandas, polars, Arrow) as polars with canonical names and types, rows in order.

    `table` is "interactions", "items" or "users". Datetimes become Int64 in their own unit.
    Use `to_tables` for tables that belong together: it also makes their identifiers agree.
    """
    if table not in REQUIRED:
        raise ConfigError(unknown("table", table, REQUIRED))
    data = to_polars(frame)
    if table == "interactions":
        return _interactions(data, columns, None)[0]
    (key,) = REQUIRED[table]
    own = _find(data, table, columns, (key,))[key]
    return data.select(canonical_ids(data[own], table).rename(key), *(data.drop(own, key, strict=False)))


def to_polars(frame: Any) -> pl.DataFrame:
    """Any pandas, polars or Arrow table as a polars frame; categories become strings.

    Raises DataError for anything else and for columns that hold values of several types.
    """
    import polars as pl

    if isinstance(frame, pl.LazyFrame):
        frame = frame.collect()
    check_width("the table", getattr(frame, "column_names", getattr(frame, "columns", ())))
    if not isinstance(frame, pl.DataFrame):
        if type(frame).__module__.split(".")[0] == "pandas" and hasattr(frame, "columns"):
            frame = _from_pandas(frame)
        elif hasattr(frame, "__arrow_c_stream__"):
            frame = pl.DataFrame(frame)
        else:
            raise DataError(f"a table must be a pandas, polars or Arrow table, not {type(frame).__name__}")
    texts = [c for c, t in frame.schema.items() if isinstance(t, pl.Categorical | pl.Enum)]
    return frame.with_columns(pl.col(texts).cast(pl.String)) if texts else frame


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
    if unit is not None and unit not in UNITS_PER_SECOND:
        raise ConfigError(unknown("time unit", unit, UNITS_PER_SECOND))


def is_integer_text(values: pl.Series) -> bool:
    """Whether every string of `values` is exactly what printing an int64 gives ("007" is not)."""
    import polars as pl

    numbers = values.cast(pl.Int64, strict=False)
    return bool((numbers.cast(pl.String) == values).fill_null(False).all())


# ----------------------------------------------------------------------------- columns


def _from_pandas(frame: Any) -> pl.DataFrame:
    """pandas to polars, with pyarrow or (pandas works without it) column by column."""
    import polars as pl

    frame = frame.rename(columns=str)
    data: dict[str, Any] = {}
    for name in frame.columns:
        column = frame[name]
        if getattr(column, "ndim", 1) != 1:
            raise DataError(f"column {name!r} occurs more than once; rename or drop one")
        try:
            try:
                data[name] = pl.from_pandas(column)
            except ImportError:
                values = zip(column, column.isna(), strict=True)
                data[name] = pl.Series(name, [None if gone else v for v, gone in values])
        except Exception as err:  # Arrow and polars each have their own classes for mixed types
            kinds = sorted({type(v).__name__ for v in column.head(100_000)})
            raise DataError(
                f"column {name!r} holds values of several types ({', '.join(kinds)}); "
                f"convert it first, for example with .astype(str)"
            ) from err
    return pl.DataFrame(data)


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
    frame: pl.DataFrame, columns: Mapping[str, str] | None, unit: str | None
) -> tuple[pl.DataFrame, str | None]:
    names = _find(frame, "interactions", columns, (USER_ID, ITEM_ID, TIMESTAMP, RATING))
    if frame.height == 0:
        raise DataError("interactions table has no rows")
    times, unit = canonical_times(frame[names[TIMESTAMP]], unit)
    out = [canonical_ids(frame[names[key]], "interactions").rename(key) for key in (USER_ID, ITEM_ID)]
    out.append(times.rename(TIMESTAMP))
    if RATING in names:
        out.append(canonical_ratings(frame[names[RATING]]).rename(RATING))
    return frame.select(out), unit


def _text_columns(
    items: pl.DataFrame, text_fields: Sequence[str] | None, key: str
) -> tuple[pl.DataFrame, list[str]]:
    """Items with their text columns as String; lists of strings are joined by ", ".

    `key` is the user's name of the identifier, for the message about a column that is not there.
    """
    import polars as pl

    lists = [c for c, t in items.schema.items() if isinstance(t, pl.List | pl.Array) and t.inner == pl.String]
    items = items.with_columns(pl.col(c).cast(pl.List(pl.String)).list.join(", ") for c in lists)
    if text_fields is None:
        return items, [c for c, t in items.schema.items() if t == pl.String and c != ITEM_ID]
    fields = list(dict.fromkeys(ITEM_ID if name == key else name for name in text_fields))
    for name in fields:
        if name not in items.columns:
            found = [key if c == ITEM_ID else c for c in items.columns]
            raise DataError(
                f"items table has no text column {name!r}{nearest(name, found)}; found: {', '.join(found)}"
            )
    return items.with_columns(pl.col(c).cast(pl.String) for c in fields if c != ITEM_ID), fields


# ----------------------------------------------------------------------------- identifiers


def _type_text_ids(tables: Tables) -> None:
    """Read identifiers of text files as Int64 where all tables write them as integers (case D1)."""
    import polars as pl

    for key in (USER_ID, ITEM_ID):
        names = ["interactions", "items" if key == ITEM_ID else "users"]
        present = [n for n in names if getattr(tables, n) is not None]
        columns = [getattr(tables, n)[key] for n in present]
        texts = [c for c in columns if c.dtype == pl.String]
        if texts and all(is_integer_text(c) for c in texts):
            for n in present:
                setattr(tables, n, getattr(tables, n).with_columns(pl.col(key).cast(pl.Int64)))
        elif texts:
            # Tables of text files share one reading: "7" here and "007" there are both strings.
            for n in present:
                setattr(tables, n, getattr(tables, n).with_columns(pl.col(key).cast(pl.String)))


def _reconcile(tables: Tables, name: str, key: str, label: str) -> None:
    """Give `key` of the `name` table the type it has in the interactions (case D12).

    `label` is the user's name of the column.
    """
    import polars as pl

    frame: pl.DataFrame | None = getattr(tables, name)
    if frame is None:
        return
    ours, theirs = tables.interactions[key], frame[key]
    if ours.dtype != theirs.dtype:
        text = theirs if theirs.dtype == pl.String else ours
        if not is_integer_text(text):
            bad = _odd_id(text)
            raise DataError(
                f"{label} is {_type_name(ours)} in the interactions but {_type_name(theirs)} in "
                f"the {name} table, and {bad!r} is not written as an integer; convert one"
            )
        theirs = theirs.cast(ours.dtype)
        frame = frame.with_columns(theirs)
    if frame.height and not ours.is_in(theirs.implode()).any():
        raise DataError(
            f"no {label} of the interactions occurs in the {name} table "
            f"({_sample(ours)} against {_sample(theirs)}); both must use the same identifiers"
        )
    setattr(tables, name, frame)


def _odd_id(text: pl.Series) -> str:
    import polars as pl

    same = (text.cast(pl.Int64, strict=False).cast(pl.String) == text).fill_null(False)
    return str(text[first_true(~same)])


def _type_name(values: pl.Series) -> str:
    return "int64" if values.dtype.is_integer() else "string"


def _sample(values: pl.Series, n: int = 3) -> str:
    shown: Iterable[Any] = values.head(50).unique(maintain_order=True).head(n).to_list()
    return ", ".join(repr(v) for v in shown)
