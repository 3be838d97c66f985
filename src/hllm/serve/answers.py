"""From a request to the answer: rows of `Recommender.recommend` and `similar`, reasons of `explain`."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from hllm.errors import DataError
from hllm.recommend.explain import in_words
from hllm.recommend.left_out import LeftOut
from hllm.serve.batching import Batcher
from hllm.serve.events import EventStore
from hllm.serve.live import Live, Missing
from hllm.serve.schemas import RULES, ExplainBody, RecommendBody, SimilarBody

Rows = list[tuple[Any, float, int]]  # (item id, score, rank) of one list


async def recommend(live: Live, store: EventStore, batcher: Batcher, body: RecommendBody) -> dict[str, Any]:
    """Rows and notes. Users with live events are answered from their history and these; the others, and
    histories, by one call that may answer other requests with the same rules, too."""
    if body.users is not None:
        sessions = [live.session(user, store) for user in body.users]
        strangers = [user for user, found in zip(body.users, sessions, strict=True) if found is None]
        _check(live.data.row_of, strangers, "user_id", body.unknown)
        names: list[Any] = [_name(live, user) for user in body.users]
        kinds = {"users": [n for n, s in enumerate(sessions) if s is None]}
        kinds["history"] = [n for n, s in enumerate(sessions) if s is not None]
        values: list[Any] = [name if s is None else s for name, s in zip(names, sessions, strict=True)]
    elif body.history is not None:
        _check(live.data.token_of, [i for row in body.history for i in row], "item_id", body.unknown)
        values = list(zip(body.history, body.times or [None] * len(body.history), strict=True))
        names, kinds = list(range(len(values))), {"history": list(range(len(values)))}
    else:
        values = list(body.titles or ())
        names, kinds = list(range(len(values))), {"titles": list(range(len(values)))}
    candidates = () if isinstance(body.candidates, str) else body.candidates
    for ids in (body.exclude, candidates, body.only_items or ()):
        _check(live.data.token_of, ids, "item_id", "error")
    notes: list[str] = []
    lists: list[Rows] = [[] for _ in values]
    for kind, places in kinds.items():
        if places:
            key = _key(live, kind, body)
            asked = [names[place] for place in places]
            work = _work(live, kind, body, asked, notes if key is None else [])
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


def _work(
    live: Live, kind: str, body: RecommendBody, asked_for: list[Any], notes: list[str]
) -> Callable[[list[Any]], list[Rows]]:
    """The one call of the recommender. A user asked for twice is answered once.

    `asked_for`: what the answer calls the values of this request, for rules of single users.
    """
    rules = _rules(kind, body, asked_for)

    def work(values: list[Any]) -> list[Rows]:
        asked: dict[str, Any] = {"users": None, "history": None, "times": None, "titles": None}
        if kind == "users":
            asked["users"] = list({str(user): user for user in values}.values())
            names = [str(user) for user in values]
        else:
            names = [str(number) for number in range(len(values))]
            asked[kind] = values
            if kind == "history":
                asked["history"] = [items for items, _ in values]
                times = [times for _, times in values]
                asked["times"] = None if all(row is None for row in times) else times
        frame, said = live.recommender.recommend_noted(
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
        notes.extend(said)
        lists: dict[str, Rows] = {}
        for user, item, score, rank in frame.iter_rows():
            lists.setdefault(str(user), []).append((item, score, rank))
        return [lists.get(name, []) for name in names]

    return work


def _rules(kind: str, body: RecommendBody, asked_for: list[Any]) -> dict[str, Any]:
    """The further rules, as `recommend_noted` takes them."""
    given: dict[str, Any] = body.model_dump(include=set(RULES), exclude_none=True)
    if body.per_user is not None:
        import polars as pl

        # What is answered from a history is called by its number there.
        numbers: dict[str, list[str]] = {}
        for number, name in enumerate(asked_for):
            numbers.setdefault(str(name), []).append(str(name) if kind == "users" else str(number))
        rows = [
            (name, str(one.item_id), one.allow)
            for one in body.per_user
            for name in dict.fromkeys(numbers.get(str(one.user_id), ()))
        ]
        given["per_user"] = pl.DataFrame(
            rows, {"user_id": pl.String, "item_id": pl.String, "allow": pl.Boolean}, orient="row"
        )
    return given


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
