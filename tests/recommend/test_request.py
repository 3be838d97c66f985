"""Rules of a request, each held against every score of every user in plain Python."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from hllm.errors import ConfigError, DataError
from hllm.pipeline import Recommender

Seen = dict[int, list[tuple[int, int]]]
DAY = 86_400


def lists(frame: pl.DataFrame) -> dict[int, list[int]]:
    """Items of each user by rank."""
    found: dict[int, list[int]] = {}
    for user, item, _, rank in frame.iter_rows():
        found.setdefault(user, []).append(item)
        assert rank == len(found[user])
    return found


@pytest.fixture(scope="module")
def everything(rec: Recommender) -> dict[int, list[int]]:
    """Every candidate of every user, seen or not, best first."""
    return lists(rec.recommend(k=1000, keep_seen=True))


def first(items: list[int], k: int, allowed: Any) -> list[int]:
    return [item for item in items if allowed(item)][:k]


def test_only_items(rec: Recommender, everything: dict[int, list[int]], seen: Seen) -> None:
    only = [10, 14, 15, 21, 33]
    found = lists(rec.recommend(k=4, only_items=only))
    for user, items in everything.items():
        past = {item for item, _ in seen[user]}
        assert found.get(user, []) == first(items, 4, lambda i: i in only and i not in past)  # noqa: B023
    assert any(len(items) < 4 for items in found.values())  # fewer rows, no filler
    with pytest.raises(DataError, match="unknown item_id 999"):
        rec.recommend(only_items=[999])


def test_what_was_seen_long_ago_comes_back(rec: Recommender, everything: Any, seen: Seen) -> None:
    end = max(time for events in seen.values() for _, time in events)
    found = lists(rec.recommend(k=30, exclude_seen_since="20d"))
    back = 0
    for user, items in everything.items():
        recent = {item for item, time in seen[user] if time >= end - 20 * DAY}
        assert found[user] == first(items, 30, lambda i: i not in recent)  # noqa: B023
        back += len({item for item, _ in seen[user]} - recent)
    assert back > 20
    assert rec.recommend(k=30, exclude_seen_since="900w").equals(rec.recommend(k=30))
    later = rec.recommend(k=30, exclude_seen_since="20d", at="2050-01-01")
    assert lists(later) == {user: items[:30] for user, items in everything.items()}
    # Without times nothing says that an event was long ago.
    anonymous = rec.recommend(history=[[10, 15]], k=30, exclude_seen_since="1d")
    assert anonymous.equals(rec.recommend(history=[[10, 15]], k=30))


def test_lists_of_single_users(rec: Recommender, everything: Any, seen: Seen) -> None:
    table = pl.DataFrame(
        {
            "user_id": [100, 100, 100, 101, 101, 777],
            "item_id": [12, 13, 14, everything[101][0], everything[101][1], 10],
            "allow": [True, True, False, False, False, True],
        }
    )
    found = lists(rec.recommend(k=5, per_user=table))
    plain = lists(rec.recommend(k=5))
    for user, items in everything.items():
        past = {item for item, _ in seen[user]}
        if user == 100:
            assert found.get(100, []) == first(items, 5, lambda i: i in (12, 13) and i not in past)  # noqa: B023
        elif user == 101:
            denied = everything[101][:2]
            assert found[101] == first(items, 5, lambda i: i not in past and i not in denied)  # noqa: B023
        else:
            assert found[user] == plain[user]
    # From a file every value is text.
    assert lists(rec.recommend(k=5, per_user=table.cast(pl.String))) == found
    with pytest.raises(DataError, match="no column allow"):
        rec.recommend(per_user=table.drop("allow"))
    with pytest.raises(DataError, match="allow='maybe' of user '100'"):
        rec.recommend(per_user=pl.DataFrame({"user_id": ["100"], "item_id": [12], "allow": ["maybe"]}))


def test_items_that_are_not_available(rec: Recommender, everything: Any, seen: Seen) -> None:
    data = rec.dataset
    assert data is not None
    n = data.n_catalogue
    start: list[str | None] = [None] * n
    end: list[str | None] = [None] * n
    start[data.token_of(10) - 1], end[data.token_of(11) - 1] = "2040-01-01", "2001-01-01"
    end[data.token_of(12) - 1] = "2030-01-01"
    items = data.items.with_columns(available_from=pl.Series(start), expires=pl.Series(end))
    other = Recommender(
        rec.config, rec.network, replace(data, path=None, frames={"items": items, "users": data.users})
    )
    for at, gone in (
        (None, {10, 11}),
        ("2035-06-01", {10, 11, 12}),
        ("2041-01-01", {11, 12}),
        ("now", {10, 11}),
    ):
        found = lists(other.recommend(k=30, keep_seen=True, at=at))
        for user, order in everything.items():
            assert found[user] == first(order, 30, lambda i: i not in gone), at  # noqa: B023
    with pytest.raises(DataError, match="'soon' is no moment"):
        other.recommend(at="soon")


def test_at_most_n_of_a_value(rec: Recommender, everything: Any) -> None:
    data = rec.dataset
    assert data is not None
    brand = dict(zip(data.item_ids, data.items["brand"].to_list(), strict=True))
    for k, limit in ((5, 1), (8, 2), (40, 2)):
        found = lists(rec.recommend(k=k, keep_seen=True, diversify=f"brand:{limit}"))
        for user, items in everything.items():
            wanted, used = [], dict.fromkeys(brand.values(), 0)
            for item in items:
                used[brand[item]] += 1
                if brand[item] is None or used[brand[item]] <= limit:
                    wanted.append(item)
            assert found[user] == wanted[:k]
    with pytest.raises(ConfigError, match=r"no column .brnad. \(did you mean .brand.\?\)"):
        rec.recommend(diversify="brnad:2")
    for bad in ("brand", "brand:0", "brand:x", ":2"):
        with pytest.raises(ConfigError, match="for example brand:2"):
            rec.recommend(diversify=bad)


@pytest.mark.parametrize("diversity", [None, 0.3])
def test_each_label_of_a_field_counts(rec: Recommender, everything: Any, diversity: float | None) -> None:
    """In any case, once an item, and split as `only` splits; an item without labels is free."""
    data = rec.dataset
    assert data is not None
    kinds = ["A|B", "b, C", "C", "a|D, D", "", None, "E", "D|E|", "F"]
    column = [kinds[i % len(kinds)] for i in range(data.n_catalogue)]
    frames = {"items": data.items.with_columns(kinds=pl.Series(column)), "users": data.users}
    other = Recommender(rec.config, rec.network, replace(data, path=None, frames=frames))
    labels = {
        item: {part for part in (text or "").lower().replace(", ", "|").split("|") if part}
        for item, text in zip(data.item_ids, column, strict=True)
    }
    for k, limit in ((6, 1), (12, 2)):
        found = lists(other.recommend(k=k, keep_seen=True, diversify=f"kinds:{limit}", diversity=diversity))
        for user, items in everything.items():
            wanted, used = [], dict.fromkeys("abcdef", 0)
            for item in found[user] if diversity else items:
                if all(used[label] < limit for label in labels[item]):
                    wanted.append(item)
                    for label in labels[item]:
                        used[label] += 1
            assert found[user] == wanted[:k]
            assert any(len(labels[item]) == 2 for item in found[user])


def test_maximal_marginal_relevance(rec: Recommender, everything: Any) -> None:
    data, network = rec.dataset, rec.network
    assert data is not None and network is not None
    raw = network.table().raw.numpy()
    unit = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)
    scores = rec.recommend(k=1000, keep_seen=True)
    found = lists(rec.recommend(k=6, keep_seen=True, diversity=0.5))
    for user, rows in scores.group_by("user_id", maintain_order=True):
        tokens = np.array([data.token_of(i) for i in rows["item_id"].to_list()])
        value = rows["score"].to_numpy()
        value = (value - value.min()) / (value.max() - value.min())
        chosen: list[int] = []
        while len(chosen) < 6:
            rest = [i for i in range(len(tokens)) if i not in chosen]
            near = {
                i: max((float(unit[tokens[i]] @ unit[tokens[j]]) for j in chosen), default=0.0) for i in rest
            }
            chosen.append(max(rest, key=lambda i: 0.5 * value[i] - 0.5 * near[i]))
        assert found[user[0]] == [data.item_ids[tokens[i] - 1] for i in chosen]  # type: ignore[index]
    assert rec.recommend(k=6, diversity=0.0).equals(rec.recommend(k=6))
    both = lists(rec.recommend(k=6, keep_seen=True, diversity=0.9, diversify="brand:1"))
    brand = dict(zip(data.item_ids, data.items["brand"].to_list(), strict=True))
    for items in both.values():
        named = [brand[i] for i in items if brand[i] is not None]
        assert len(items) == 6 and len(named) == len(set(named))
    with pytest.raises(ConfigError, match="diversity=2"):
        rec.recommend(diversity=2)


def test_rules_together_with_strangers(rec: Recommender) -> None:
    frame = rec.recommend(
        [100, "nobody"], k=3, unknown="popular", only_items=[10, 11, 12], exclude_seen_since="1d"
    )
    assert set(frame["item_id"].to_list()) <= {10, 11, 12}
    assert frame.filter(pl.col("user_id") == "nobody").height == 3


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"divresity": 0.3}, r"unknown rule 'divresity' \(did you mean 'diversity'\?\)"),
        ({"exclude_seen_since": "soon"}, "'soon' is no duration.*for example 30d"),
        ({"exclude_seen_since": 30}, "'?30'? is no duration"),
    ],
)
def test_rules_that_cannot_be(rec: Recommender, rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rec.recommend(k=3, **rules)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"text_weight": 0.3}, "give text"),
        ({"at": "yesterday"}, "at='yesterday' is no moment"),
        ({"at": 10**30}, "is no moment"),
        ({"diversity": True}, "diversity=True: a number from 0"),
        ({"diversify": ""}, "a column and a number from 1"),
        ({"diversify": "genres:" + "9" * 5000}, "a column and a number from 1"),
        ({"exclude_seen_since": "9" * 5000 + "d"}, "is no duration"),
    ],
)
def test_values_of_rules_that_cannot_be(rec: Recommender, rule: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, DataError), match=told):
        rec.recommend([rec.dataset.users["user_id"][0]], **rule)  # type: ignore[union-attr]


def test_numbers_of_numpy(rec: Recommender) -> None:
    assert rec.recommend(k=3, diversity=np.float32(0.5)).equals(rec.recommend(k=3, diversity=0.5))  # type: ignore[arg-type]
