"""From a request to the answer: rows of `Recommender.recommend` and `similar`, reasons of `explain`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from hllm.errors import DataError
from hllm.recommend.explain import in_words
from hllm.recommend.left_out import LeftOut
from hllm.recommend.queries import numbered
from hllm.serve.batching import Batcher
from hllm.serve.events import EventStore
from hllm.serve.live import Live, Missing
from hllm.serve.schemas import RULES, Allowance, ExplainBody, RecommendBody, SimilarBody

Rows = list[tuple[Any, float, int]]  # (item id, score, rank) of one list


async def recommend(live: Live, store: EventStore, batcher: Batcher, body: RecommendBody) -> dict[str, Any]:
    """Rows and notes. Users with live events are answered from their history and these; the others, and
    histories, by one call that may answer other requests with the same rules, too."""
    data, users, histories, titles = live.data, body.users or [], body.history or [], body.titles or []
    sessions = [live.session(user, store) for user in users]
    strangers = [user for user, found in zip(users, sessions, strict=True) if found is None]
    _check(data.row_of, strangers, "user_id", body.unknown)
    _check(data.token_of, [item for row in histories for item in row], "item_id", body.unknown)
    names = _names(live, body)
    values: list[Any] = [names[n] if found is None else found for n, found in enumerate(sessions)]
    values += zip(histories, body.times or [None] * len(histories), strict=True)
    values += titles
    kinds: dict[str, list[int]] = {"users": [], "history": [], "titles": []}
    for place in range(len(values)):
        is_title, known = place >= len(users) + len(histories), place < len(users) and sessions[place] is None
        kinds["titles" if is_title else "users" if known else "history"].append(place)
    candidates = () if isinstance(body.candidates, str) else body.candidates
    for ids in (body.exclude, candidates, body.only_items or ()):
        _check(live.data.token_of, ids, "item_id", "error")
    notes: list[str] = []
    lists: list[Rows] = [[] for _ in values]
    for kind, places in kinds.items():
        if places:
            key = _key(live, kind, body)
            asked = [names[place] for place in places]
            work = _work(live, kind, body, asked if key is None else None, notes)
            found = await batcher.submit(key, [values[place] for place in places], work)
            for place, rows in zip(places, found, strict=True):
                lists[place] = rows
    title = live.catalogue.title
    rows = [
        {"user_id": name, "item_id": item, "title": title(item), "score": score, "rank": rank}
        for name, found in zip(names, lists, strict=True)
        for item, score, rank in found
    ]
    return {"rows": rows, "notes": notes, "run": live.number}


def _key(live: Live, kind: str, body: RecommendBody) -> Hashable | None:
    """What requests must share to be answered by one call; None where notes say who was left out of it."""
    if body.unknown != "error" or body.per_user is not None:
        return None
    rules = body.model_dump(
        include={"k", "keep_seen", "exclude", "candidates", "only", *RULES}, exclude_none=True
    )
    return live.number, kind, json.dumps(rules)


def _names(live: Live, body: RecommendBody) -> list[Any]:
    """What the lists of an answer are called, as `Recommender.recommend` calls them. Raises DataError for a name that
    two of them would have."""
    histories, titles = body.history or [], body.titles or []
    mixed = sum(given is not None for given in (body.users, body.history, body.titles)) > 1
    names = [_name(live, user) for user in body.users or []]
    names += numbered(live.data, 0, len(histories), mixed)
    names += numbered(live.data, len(histories), len(titles), mixed)
    if mixed and (twice := [name for name, n in Counter(map(str, names)).items() if n > 1]):
        raise DataError(f"two lists would be called {twice[0]!r}; ask for them in two requests")
    return names


def _work(
    live: Live, kind: str, body: RecommendBody, called: list[Any] | None, notes: list[str]
) -> Callable[[list[Any]], list[Rows]]:
    """The one call of the recommender. A user asked for twice is answered once.

    called  what the answer calls the values, where they are of this request alone: for notes, and for rules of
            single users; None: they may be joined with those of others, and are numbered
    """
    rules: dict[str, Any] = body.model_dump(include=set(RULES), exclude_none=True)
    if body.per_user is not None:
        rules["per_user"] = _per_user(body.per_user, {str(name) for name in called or ()})

    def work(values: list[Any]) -> list[Rows]:
        asked: dict[str, Any] = {"users": None, "history": None, "times": None, "titles": None}
        names = list(range(len(values))) if called is None else called
        if kind == "users":
            names = values
            asked["users"] = list({str(user): user for user in values}.values())
        elif kind == "titles":
            asked["titles"] = dict(zip(names, values, strict=True))
        else:
            lists = dict(zip(names, values, strict=True))
            asked["history"] = {name: items for name, (items, _) in lists.items()}
            asked["times"] = [times for _, times in lists.values()]
        top, queries, said = live.recommender.top_noted(
            **asked,
            split=None,
            k=body.k,
            keep_seen=body.keep_seen,
            exclude=body.exclude,
            candidates=body.candidates,
            unknown=body.unknown,
            only=body.only,
            rules=rules,
        )
        if called is not None:
            notes.extend(said)
        found: dict[str, Rows] = {}
        ids = live.data.item_ids
        columns = (top.rows.tolist(), top.tokens.tolist(), top.scores.tolist(), top.ranks.tolist())
        for row, token, score, rank in zip(*columns, strict=True):
            found.setdefault(str(queries[row]), []).append((ids[token - 1], score, rank))
        return [found.get(str(name), []) for name in names]

    return work


def _per_user(rows: Sequence[Allowance], names: set[str]) -> Any:
    """The table `user_id, item_id, allow` of the lists that are called `names`."""
    import polars as pl

    kept = [(str(one.user_id), str(one.item_id), one.allow) for one in rows if str(one.user_id) in names]
    return pl.DataFrame(kept, {"user_id": pl.String, "item_id": pl.String, "allow": pl.Boolean}, orient="row")


async def similar(live: Live, batcher: Batcher, body: SimilarBody) -> dict[str, Any]:
    """Rows of `Recommender.similar` with titles."""
    item = None if body.item is None else live.item(body.item)
    candidates = () if isinstance(body.candidates, str) else body.candidates
    for ids in (body.exclude, candidates, body.only_items or ()):
        _check(live.data.token_of, ids, "item_id", "error")
    rules = body.model_dump(exclude={"item", "compared"}, exclude_none=True)
    found = await batcher.call(lambda: live.recommender.similar(item, **rules))
    return {"rows": _titled(live, plain(found)), "run": live.number}


async def explain(live: Live, store: EventStore, batcher: Batcher, body: ExplainBody) -> dict[str, Any]:
    """`Recommender.explain` in words and numbers, the first `k` reasons of it."""
    item, who = live.item(body.item), f"user {body.user}"
    user: Any = None
    history: Any = None
    times: Any = body.times
    if body.user is None:
        who, history = "this history", [live.item(i) for i in body.history or ()]
    elif (session := live.session(body.user, store)) is not None:
        history, times = session
    else:
        user = live.user(body.user)
    found = await batcher.call(lambda: live.recommender.explain(user, item, history=history, times=times))
    words = in_words(found, who, body.k, live.data.meta["time_unit"])
    said = plain(found)
    return {**said, "reasons": said["reasons"][: body.k], "words": words, "run": live.number}


def _titled(live: Live, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the title of their item."""
    return [{**row, "title": live.catalogue.title(row["item_id"])} for row in rows]


def _name(live: Live, user: Any) -> Any:
    try:
        return live.user(user)
    except Missing:
        return user


def _check(find: Callable[[Any], int], values: Sequence[Any], kind: str, unknown: str) -> None:
    """Raise Missing naming the unknown of `values`, if that is an error."""
    if unknown != "error":
        return
    left_out = LeftOut("error")
    for value in values:
        left_out.attempt(find, value, kind)
    try:
        left_out.check()
    except DataError as err:
        raise Missing(str(err)) from None


def plain(value: Any) -> Any:
    """A result as what JSON can hold: frames as lists of rows, dates as text, no NaN."""
    if hasattr(value, "iter_rows"):
        return [plain(row) for row in value.iter_rows(named=True)]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
