"""Whom to recommend for: known users, raw histories, titles, or the users of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.arguments import one_of
from hllm.data.batches.queries import Queries, eval_queries, history_queries, last_queries
from hllm.data.tables.values import clean_text, id_list
from hllm.errors import DataError, nearest

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset


def queries_of_users(
    data: Dataset, users: Sequence[Any] | None = None, split: str | None = None
) -> tuple[Queries, list[Any]]:
    """Queries and the user id of each: `users` (all if None) after their last event, or a split's users.

    Raises DataError naming an unknown user, ConfigError for an unknown split.
    """
    if split is not None:
        queries = eval_queries(data, one_of("split", split, data.queries))
        return queries, [data.user_ids[row] for row in queries.users]
    if users is None:
        rows = np.arange(data.n_users)
    else:
        rows = np.array([data.row_of(u) for u in id_list(users, "users", "user ids")], dtype=np.int64)
    return last_queries(data, rows), [data.user_ids[row] for row in rows]


def queries_of_histories(data: Dataset, histories: Sequence[Sequence[Any]]) -> tuple[Queries, list[int]]:
    """Queries for anonymous histories of item ids, oldest first; they are named 0, 1, 2, ...

    Raises DataError for an empty history and for an unknown item.
    """
    tokens = [[data.token_of(i) for i in row] for row in _lists(histories, "history", "item ids")]
    return history_queries(tokens), list(range(len(tokens)))


def _lists(values: Any, name: str, what: str) -> list[list[Any]]:
    """The lists of a list of lists; DataError where they are none, or where one is empty."""
    lists = []
    for number, row in enumerate(id_list(values, name, f"lists of {what}")):
        if isinstance(row, str | bytes | Number):
            raise DataError(f"{name} must be a list of lists of {what}, for example {name}=[[{row!r}]]")
        lists.append(id_list(row, f"{name}[{number}]", what))
        if not lists[-1]:
            raise DataError(f"{name} {number} is empty; give at least one of the {what}")
    return lists


def queries_of_titles(data: Dataset, titles: Sequence[Sequence[str]]) -> tuple[Queries, list[int]]:
    """The same by title: an exact match, or one that differs in case only. DataError names the nearest title."""
    column = title_column(data)
    by_title: dict[str, int] = {}
    for token, title in enumerate(data.items[column].to_list(), start=1):
        if title is not None:
            by_title.setdefault(str(title).casefold().strip(), token)
    lists = _lists(titles, "titles", "titles")
    tokens = [[_token_of_title(by_title, title, column) for title in row] for row in lists]
    return history_queries(tokens), list(range(len(tokens)))


def title_column(data: Dataset) -> str:
    """The column that names an item to people: `title`, or the first text field."""
    fields = [str(name) for name in data.meta.get("text_fields", [])]
    for name in ("title", *fields):
        if name in data.items.columns:
            return name
    raise DataError(
        f"the items of {data.meta['name']} have no text, so none can be found by title; use item ids"
    )


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
