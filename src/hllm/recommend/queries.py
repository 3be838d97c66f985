"""Whom to recommend for: known users, raw histories, titles, or the users of a split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.batches.queries import Queries, eval_queries, history_queries, last_queries
from hllm.errors import ConfigError, DataError, nearest, unknown

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset


def queries_of_users(
    data: Dataset, users: Sequence[Any] | None = None, split: str | None = None
) -> tuple[Queries, list[Any]]:
    """Queries and the user id of each: `users` (all if None) after their last event, or a split's users.

    Raises DataError naming an unknown user, ConfigError for an unknown split.
    """
    if split is not None:
        if split not in data.queries:
            raise ConfigError(unknown("split", split, data.queries))
        queries = eval_queries(data, split)
        return queries, [data.user_ids[row] for row in queries.users]
    if isinstance(users, str | Integral):
        raise DataError(f"users={users!r} must be a list of user ids, for example users=[{users!r}]")
    rows = (
        np.arange(data.n_users)
        if users is None
        else np.array([data.row_of(u) for u in users], dtype=np.int64)
    )
    return last_queries(data, rows), [data.user_ids[row] for row in rows]


def queries_of_histories(data: Dataset, histories: Sequence[Sequence[Any]]) -> tuple[Queries, list[int]]:
    """Queries for anonymous histories of item ids, oldest first; they are named 0, 1, 2, ...

    Raises DataError for an empty history and for an unknown item.
    """
    tokens = []
    for number, history in enumerate(histories):
        if isinstance(history, str | Integral):
            raise DataError(
                f"history must be a list of lists of item ids, for example history=[[{history!r}]]"
            )
        if not len(history):
            raise DataError(f"history {number} is empty; give at least one item id")
        tokens.append([data.token_of(item) for item in history])
    return history_queries(tokens), list(range(len(tokens)))


def queries_of_titles(data: Dataset, titles: Sequence[Sequence[str]]) -> tuple[Queries, list[int]]:
    """The same by title: an exact match, or one that differs in case only. DataError names the nearest title."""
    column = title_column(data)
    by_title: dict[str, int] = {}
    for token, title in enumerate(data.items[column].to_list(), start=1):
        if title is not None:
            by_title.setdefault(title.casefold().strip(), token)
    tokens = []
    for number, history in enumerate(titles):
        if isinstance(history, str):
            raise DataError(f"titles must be a list of lists, for example titles=[[{history!r}]]")
        if not len(history):
            raise DataError(f"titles {number} is empty; give at least one title")
        tokens.append([_token_of_title(by_title, title, column) for title in history])
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
    token = by_title.get(title.casefold().strip())
    if token is None:
        wanted = title.casefold().strip()
        hint = nearest(wanted, by_title) or _containing(wanted, by_title)
        raise DataError(f"no item has the {column} {title!r}{hint}")
    return token


def _containing(part: str, titles: Iterable[str]) -> str:
    """Up to three titles that contain `part`, as the end of a message."""
    found = list(islice((title for title in titles if part in title), 3))
    return f"; it is part of {', '.join(map(repr, found))}" if found else ""
