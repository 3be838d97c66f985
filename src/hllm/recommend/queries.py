"""Whom to recommend for: known users, raw histories, titles, or the users of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.arguments import one_of
from hllm.data.batches.queries import Queries, eval_queries, history_queries, last_queries
from hllm.data.tables.values import clean_text, id_list
from hllm.errors import DataError, nearest
from hllm.recommend.left_out import LeftOut
from hllm.recommend.times import times_of

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset


def queries_of_users(
    data: Dataset,
    users: Sequence[Any] | None = None,
    split: str | None = None,
    left_out: LeftOut | None = None,
) -> tuple[Queries, list[Any]]:
    """Queries and the user id of each: `users` (all if None) after their last event, or a split's users.

    An unknown user is told to `left_out`, and has no history. Raises ConfigError for an unknown split.
    """
    left_out = left_out or LeftOut()
    if split is not None:
        queries = eval_queries(data, one_of("split", split, data.queries))
        names = [data.user_ids[row] for row in queries.users]
    elif users is None:
        queries, names = last_queries(data, np.arange(data.n_users)), list(data.user_ids)
    else:
        queries, names = _queries_of_ids(data, users, left_out)
    left_out.check_empty(queries, names, "user_id")
    return queries, names


def _queries_of_ids(data: Dataset, users: Sequence[Any], left_out: LeftOut) -> tuple[Queries, list[Any]]:
    users = id_list(users, "users", "user ids")
    rows = [left_out.attempt(data.row_of, user, "user_id") for user in users]
    left_out.check()
    names = [user if row is None else data.user_ids[row] for user, row in zip(users, rows, strict=True)]
    left_out.strangers.update(repr(name) for name, row in zip(names, rows, strict=True) if row is None)
    return last_queries(data, np.array([-1 if row is None else row for row in rows], dtype=np.int64)), names


def queries_of_histories(
    data: Dataset,
    histories: Sequence[Sequence[Any]],
    times: Sequence[Any] | None = None,
    left_out: LeftOut | None = None,
) -> tuple[Queries, list[int]]:
    """Queries for anonymous histories of item ids, oldest first; they are named 0, 1, 2, ...

    `times`: a list for each history (or None), in the dataset's unit or as datetimes, never falling. A history
    with an unknown item is told to `left_out`, and counts as empty. Raises DataError for times that do not fit.
    """
    left_out = left_out or LeftOut()
    lists = _lists(histories, "history", "item ids")
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
            left_out.strangers.add(repr(number))
            known, given = [], None
        tokens.append(known)
        moments.append(None if given is None else given.tolist())
    left_out.check()
    queries, names = history_queries(tokens, moments, data.meta["time_unit"]), list(range(len(tokens)))
    left_out.check_empty(queries, names, "history")
    return queries, names


def _lists(values: Any, name: str, what: str) -> list[list[Any]]:
    """The lists of a list of lists; DataError where they are none."""
    lists = []
    for number, row in enumerate(id_list(values, name, f"lists of {what}")):
        if isinstance(row, str | bytes | Number):
            raise DataError(f"{name} must be a list of lists of {what}, for example {name}=[[{row!r}]]")
        lists.append(id_list(row, f"{name}[{number}]", what))
    return lists


def queries_of_titles(
    data: Dataset, titles: Sequence[Sequence[str]], left_out: LeftOut | None = None
) -> tuple[Queries, list[int]]:
    """The same by title: an exact match, or one that differs in case only. DataError names the nearest title."""
    column = title_column(data)
    by_title: dict[str, int] = {}
    for token, title in enumerate(data.items[column].to_list(), start=1):
        if title is not None:
            by_title.setdefault(str(title).casefold().strip(), token)
    lists = _lists(titles, "titles", "titles")
    tokens = [[_token_of_title(by_title, title, column) for title in row] for row in lists]
    queries, names = history_queries(tokens), list(range(len(tokens)))
    (left_out or LeftOut()).check_empty(queries, names, "titles")
    return queries, names


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
