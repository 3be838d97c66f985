"""Whom to recommend for, from options and files: known users, and histories with or without a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.cli.rules import TABLES, read_ids, split_list
from hllm.errors import DataError
from hllm.recommend.whom import Whom

if TYPE_CHECKING:
    import polars as pl


def read_whom(
    users: Path | None,
    user: Sequence[str],
    history: Sequence[str],
    times: Sequence[str],
    titles: Sequence[str],
) -> Whom:
    """What --users, --user, --history, --times and --titles say.

    A table of --users may have a column `history`, and one `times`: a row with a history is answered from it, under
    the row's user_id; a row without one is a known user.
    """
    known, named, moments = (None, {}, {}) if users is None else _users_file(users)
    ids = [*(known or []), *user] or None
    lists: Any = [split_list(text) for text in history] or None
    given: Any = [_moments(text) for text in times] or None
    if named:
        if lists:
            raise DataError(f"{users} has histories; put those of --history into it, under a user_id")
        if given:
            raise DataError(f"{users} has histories; put times into its column times")
        lists, given = named, list(moments.values()) if any(moments.values()) else None
    return Whom(ids, lists, given, [list(titles)] if titles else None)


def _users_file(path: Path) -> tuple[list[Any] | None, dict[Any, list[Any]], dict[Any, list[Any] | None]]:
    """Known users, and histories and times by name."""
    from hllm.data.reading.tablefiles import has_ending, read_table_file
    from hllm.data.tables.columns import canonical_ids

    if not has_ending(path, TABLES):
        return read_ids(path, "user_id"), {}, {}
    frame = read_table_file(path)
    if "history" not in frame.columns or "user_id" not in frame.columns:
        return read_ids(path, "user_id"), {}, {}
    names = canonical_ids(frame["user_id"], str(path)).to_list()
    lists = _column(frame, "history")
    moments = _column(frame, "times") if "times" in frame.columns else [None] * len(names)
    known, named, when = [], {}, {}  # type: list[Any], dict[Any, list[Any]], dict[Any, list[Any] | None]
    for name, items, times in zip(names, lists, moments, strict=True):
        if items is None:
            known.append(name)
        elif name in named:
            raise DataError(f"{path} has two histories of {name!r}; one row each")
        else:
            named[name] = _listed(items)
            when[name] = None if times is None else _listed(times, moments=True)
    if not names:
        raise DataError(f"{path} holds no user id; one a line, or a table with a user_id column")
    return list(dict.fromkeys(known)) or None, named, when


def _column(frame: pl.DataFrame, name: str) -> list[Any]:
    return list(frame[name].to_list())


def _listed(value: Any, moments: bool = False) -> list[Any]:
    """A list in a cell: a list, `A,B`, or a list that a program has printed."""
    from hllm.data.tables.values import printed_list

    if isinstance(value, str):
        found = printed_list(value.strip())
        return found if found is not None else (_moments if moments else split_list)(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def _moments(text: str) -> list[Any]:
    """Times as numbers, or as the dates they are."""
    parts = split_list(text)
    return (
        [int(part) for part in parts] if all(p.removeprefix("-").isdecimal() for p in parts) else list(parts)
    )
