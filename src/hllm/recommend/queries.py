"""Whom to recommend for: known users, raw histories and titles in one call, or the users of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.arguments import one_of
from hllm.data.batches.queries import Queries, eval_queries, history_queries, joined_queries, last_queries
from hllm.data.tables.schema import USER_ID
from hllm.data.tables.values import clean_text, id_list
from hllm.errors import ConfigError, DataError, nearest
from hllm.recommend.left_out import LeftOut
from hllm.recommend.times import times_of

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset


def queries_of(
    data: Dataset,
    users: Sequence[Any] | None = None,
    history: Sequence[Sequence[Any]] | Mapping[Any, Sequence[Any]] | None = None,
    times: Sequence[Any] | None = None,
    titles: Sequence[Sequence[str]] | None = None,
    split: str | None = None,
    left_out: LeftOut | None = None,
) -> tuple[Queries, list[Any]]:
    """Queries and the name of each: those of `users`, then of `history`, then of `titles`; or those of a `split`.

    users    ids, after their last event; all if nothing is given
    history  lists of item ids of anonymous users, oldest first, or a mapping from names to such lists
    times    a list for each history (or None), in the dataset's unit or as datetimes, never falling
    titles   the same by title, exact or in another case

    Lists without a name are called 0, 1, 2, ...; in one call with others -1, -2, ..., as the dataset's ids are typed.
    Who or what is unknown is told to `left_out`; a history with an unknown item counts as empty. Raises DataError for
    what is malformed, and for names that occur twice, ConfigError for an unknown split or one beside others.
    """
    left_out = left_out or LeftOut()
    given = {"users": users, "history": history, "titles": titles, "split": split}
    kinds = [kind for kind, value in given.items() if value is not None]
    if "split" in kinds and len(kinds) > 1:
        raise ConfigError(f"split={split!r} says whom for; give it without {kinds[0]}")
    if times is not None and history is None:
        raise ConfigError("times belong to history; give history=[[...]] with them")
    mixed, unnamed = len(kinds) > 1, 0
    parts, names, places = [], [], {}  # type: list[Queries], list[Any], dict[str, range]
    for kind in kinds or ["users"]:
        if kind == "split":
            part = eval_queries(data, one_of("split", split, data.queries))
            called = [data.user_ids[row] for row in part.users]
        elif kind == "users":
            part, called = _of_users(data, users, left_out)
        else:
            lists, called = _named(history if kind == "history" else titles, kind, data, unnamed, mixed)
            unnamed += len(lists)
            part = (
                _of_histories(data, lists, times, called, left_out)
                if kind == "history"
                else _of_titles(data, lists)
            )
        places[kind] = range(len(names), len(names) + len(called))
        parts.append(part)
        names += called
    if mixed and (twice := [name for name, n in Counter(map(str, names)).items() if n > 1]):
        raise DataError(
            f"two lists would be called {twice[0]!r}; give histories other names: history={{name: [...]}}"
        )
    left_out.check()
    queries = parts[0] if len(parts) == 1 else joined_queries(parts)
    for kind, rows in places.items():
        what = kind if kind in ("history", "titles") else "user_id"
        left_out.check_empty(queries, names, what, rows)
    return queries, names


def _of_users(data: Dataset, users: Sequence[Any] | None, left_out: LeftOut) -> tuple[Queries, list[Any]]:
    if users is None:
        return last_queries(data, np.arange(data.n_users)), list(data.user_ids)
    users = id_list(users, "users", "user ids")
    rows = [left_out.attempt(data.row_of, user, "user_id") for user in users]
    names = [user if row is None else data.user_ids[row] for user, row in zip(users, rows, strict=True)]
    left_out.strangers.update(repr(name) for name, row in zip(names, rows, strict=True) if row is None)
    return last_queries(data, np.array([-1 if row is None else row for row in rows], dtype=np.int64)), names


def _named(
    values: Any, kind: str, data: Dataset, first: int, mixed: bool
) -> tuple[list[list[Any]], list[Any]]:
    """The lists of `history` or `titles`, and what each is called."""
    what = "item ids" if kind == "history" else "titles"
    if isinstance(values, Mapping):
        for name in values:
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise DataError(f"{kind}: {name!r} is no name of a list; give a text or a whole number")
        return _lists(list(values.values()), kind, what), list(values)
    lists = _lists(values, kind, what)
    return lists, numbered(data, first, len(lists), mixed)


def numbered(data: Dataset, first: int, n: int, mixed: bool) -> list[Any]:
    """What `n` lists without a name are called: 0, 1, ..., or beside others -1, -2, ..., as user ids are typed."""
    if not mixed:
        return list(range(first, first + n))
    kept = data.users[USER_ID].dtype.is_integer()
    return [-1 - number if kept else str(-1 - number) for number in range(first, first + n)]


def _of_histories(
    data: Dataset, lists: list[list[Any]], times: Sequence[Any] | None, names: list[Any], left_out: LeftOut
) -> Queries:
    tokens, moments = [], []
    if times is not None and len(times) != len(lists):
        raise DataError(f"{len(times)} lists of times for {len(lists)} histories; give one for each, or None")
    for number, history in enumerate(lists):
        given = None if times is None or times[number] is None else times_of(data, times[number], number)
        if given is not None and len(given) != len(history):
            raise DataError(
                f"times {number}: {len(given)} for {len(history)} events; give each event its own"
            )
        found = [left_out.attempt(data.token_of, item, "item_id") for item in history]
        known = [token for token in found if token is not None]
        if len(known) < len(found):  # what is missing may be what matters: no part of it is used
            left_out.strangers.add(repr(names[number]))
            known, given = [], None
        tokens.append(known)
        moments.append(None if given is None else given.tolist())
    return history_queries(tokens, moments, data.meta["time_unit"])


def _lists(values: Any, name: str, what: str) -> list[list[Any]]:
    """The lists of a list of lists; DataError where they are none."""
    lists = []
    for number, row in enumerate(id_list(values, name, f"lists of {what}")):
        if isinstance(row, str | bytes | Number):
            raise DataError(f"{name} must be a list of lists of {what}, for example {name}=[[{row!r}]]")
        lists.append(id_list(row, f"{name}[{number}]", what))
    return lists


def _of_titles(data: Dataset, lists: list[list[Any]]) -> Queries:
    """By title: an exact match, or one that differs in case only. DataError names the nearest title."""
    column = title_column(data)
    by_title: dict[str, int] = {}
    for token, title in enumerate(data.items[column].to_list(), start=1):
        if title is not None:
            by_title.setdefault(str(title).casefold().strip(), token)
    return history_queries([[_token_of_title(by_title, title, column) for title in row] for row in lists])


def title_column(data: Dataset) -> str:
    """The column that names an item to people: `title`, or the first text field."""
    fields = [str(name) for name in data.meta.get("text_fields", [])]
    for name in ("title", *fields):
        if name in data.items.columns:
            return name
    raise DataError(
        f"the items of {data.meta['name']} have no text, so none can be found by title; use item ids"
    )


def title_of(data: Dataset) -> Callable[[Any], str]:
    """A function from item id to title; the id itself where there is none."""
    try:
        titles = data.items[title_column(data)].to_list()
    except DataError:
        titles = [None] * len(data.item_ids)
    by_id = dict(zip(data.item_ids, titles, strict=True))
    return lambda item_id: str(by_id.get(item_id) or item_id)


def _token_of_title(by_title: dict[str, int], title: str, column: str) -> int:
    if not isinstance(title, str):
        raise DataError(f"titles: {title!r} is a {type(title).__name__}, not the text of a title")
    wanted = (clean_text(title) or "").casefold()
    token = by_title.get(wanted, by_title.get(title.casefold().strip()))
    if token is None:
        hint = nearest(wanted, by_title) or _containing(wanted, by_title)
        raise DataError(f"no item has the {column} {title!r}{hint}")
    return token


def _containing(part: str, titles: Iterable[str]) -> str:
    """Up to three titles that contain `part`, as the end of a message."""
    found = list(islice((title for title in titles if part in title), 3))
    return f"; it is part of {', '.join(map(repr, found))}" if found else ""
