"""POST /recommend gives the rows of `Recommender.recommend`, whoever asks and with whom."""

from __future__ import annotations

import inspect
import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient

from hllm import Recommender
from hllm.data.dataset import Dataset
from hllm.recommend.options import SearchOptions
from hllm.serve.schemas import RecommendBody


def rows_of(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return [(u, i, pytest.approx(s, abs=1e-5), r) for u, i, s, r in frame.iter_rows()]


def ask(client: TestClient, status: int = 200, **body: Any) -> Any:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == status, answer.text

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(answer.text, parse_constant=refuse)


def got(client: TestClient, **body: Any) -> list[tuple[Any, ...]]:
    return [(r["user_id"], r["item_id"], r["score"], r["rank"]) for r in ask(client, **body)["rows"]]


@pytest.mark.parametrize(
    "asked",
    [
        {"users": ["u003"]},
        {"users": ["u003", "u001", "u003"], "k": 3},
        {"history": [["001", "006"], ["002"]], "k": 4},
        {"history": [["001", "006"], ["002"]], "times": [[5, 9], None], "k": 4},
        {"titles": [["TITLE"]], "k": 2},
        {"users": ["u003", "u001"], "history": [["001", "006"], ["002"]], "k": 4},
        {"users": ["u003"], "history": [["001", "006"]], "times": [[5, 9]], "titles": [["TITLE"]], "k": 4},
        {"history": [["001"]], "titles": [["TITLE"]], "users": ["ghost"], "unknown": "popular", "k": 2},
        {"users": ["u003"], "keep_seen": True, "k": 100},
        {"users": ["u003"], "exclude": ["001", "002"], "candidates": "catalogue"},
        {"history": [["001"]], "candidates": ["004", "007", "001"]},
        {"users": ["ghost", "u001"], "unknown": "skip"},
        {"users": ["ghost", "u001"], "unknown": "popular", "k": 2},
        {"history": [["nothing"], ["001"]], "unknown": "popular", "k": 2},
        {"users": ["u003", "u001"], "only": {"genres": ["Comedy", "horror"]}, "k": 5},
        {"users": ["u003"], "only_items": ["001", "002", "004"], "diversity": 0.5},
        {"users": ["u003"], "diversify": "genres:1", "exclude_seen_since": "30d", "at": "2001-01-01"},
    ],
)
def test_rows_are_those_of_the_recommender(
    client: TestClient, recommender: Recommender, asked: dict[str, Any]
) -> None:
    assert recommender.dataset is not None
    if "titles" in asked:
        asked = {**asked, "titles": [[recommender.dataset.items["title"][0]]]}
    assert got(client, **asked) == rows_of(recommender.recommend(**asked))


def test_a_request_alone_has_the_recommenders_own_bits(client: TestClient, recommender: Recommender) -> None:
    assert recommender.dataset is not None
    ids, asked = recommender.dataset.item_ids, [{"users": [user]} for user in recommender.dataset.user_ids]
    asked += [{"history": [ids[first : first + 1 + first % 40]]} for first in range(20)]
    for body in asked:
        assert got(client, **body) == recommender.recommend(**body).rows(), body


def test_of_many_at_once_each_gets_his_own(client: TestClient, recommender: Recommender) -> None:
    assert recommender.dataset is not None
    users = recommender.dataset.user_ids
    bodies: list[dict[str, Any]] = [{"users": [user], "k": 3} for user in users]
    bodies += [{"history": [[item, "001"]], "k": 3} for item in recommender.dataset.item_ids[:20]]
    bodies[7] = {"users": ["ghost"]}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: client.post("/recommend", json=body), bodies))
    for body, answer in zip(bodies, answers, strict=True):
        if body == {"users": ["ghost"]}:
            assert answer.status_code == 404
            continue
        rows = [(r["user_id"], r["item_id"], r["score"], r["rank"]) for r in answer.json()["rows"]]
        assert rows == rows_of(recommender.recommend(**body))


def test_notes_say_who_was_left_out(client: TestClient) -> None:
    answer = ask(client, users=["ghost", "u001"], unknown="skip")
    assert len(answer["notes"]) == 1 and "'ghost'" in answer["notes"][0]
    assert {row["user_id"] for row in answer["rows"]} == {"u001"}


def test_case_d19_rest_gives_what_is_left(serve: Any, tmp_path: Path) -> None:
    """5 items, three of them seen: two rows, and with the best excluded and k=1 the other."""
    events = [
        ("u1", "a"),
        ("u1", "b"),
        ("u1", "c"),
        ("u2", "d"),
        ("u2", "e"),
        ("u2", "a"),
        ("u3", "b"),
        ("u3", "d"),
    ]
    frame = pl.DataFrame(events, schema=["user_id", "item_id"], orient="row")
    data = Dataset.from_tables(frame.with_columns(timestamp=pl.int_range(pl.len())), time_unit="s")
    fitted = Recommender.from_preset("sasrec", d_model=8, n_layers=1, n_heads=1, epochs=1)
    fitted.fit(data, out=tmp_path / "five", device="cpu", progress=False)
    client = serve(tmp_path / "five")
    rows = ask(client, users=["u1"], k=10)["rows"]
    assert [row["rank"] for row in rows] == [1, 2]
    assert {row["item_id"] for row in rows} == {"d", "e"}
    assert all(math.isfinite(row["score"]) for row in rows)
    assert got(client, users=["u1"], k=10) == rows_of(fitted.recommend(["u1"], k=10))
    (row,) = ask(client, users=["u1"], k=1, exclude=[rows[0]["item_id"]])["rows"]
    assert (row["item_id"], row["rank"]) == (rows[1]["item_id"], 1)


def test_case_d20_rest_names_unknown_users(client: TestClient) -> None:
    answer = ask(client, 404, users=["ghost", "u001"])
    assert "'ghost'" in answer["error"] and "history=" in answer["error"]
    assert "'u001'" not in answer["error"].split(";")[0]
    assert answer["request_id"]
    alone, both = got(client, users=["u001"]), got(client, users=["u001", "u002"])
    assert [row[:2] for row in alone] == [row[:2] for row in both if row[0] == "u001"]
    assert "empty" in ask(client, 422, history=[[]])["error"]
    assert len(ask(client, history=[[]], unknown="popular", k=3)["rows"]) == 3
    assert ask(client, history=[[]], unknown="skip")["rows"] == []


def test_unknown_items_are_named(client: TestClient) -> None:
    for body in ({"history": [["001", "x1"]]}, {"users": ["u001"], "exclude": ["x1"]}):
        assert "'x1'" in ask(client, 404, **body)["error"]
    both = ask(client, 404, history=[["x1"], ["x2"]])["error"]
    assert "'x1'" in both and "'x2'" in both


def test_further_rules_are_the_recommenders_own(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach `top_noted` as they are; a user answered from live events keeps the name."""
    client, seen = serve(), []
    live = client.app.state.service.live.recommender
    own = live.top_noted

    def noted(rules: Any = None, **options: Any) -> Any:
        seen.append(rules)
        return own(**options)

    monkeypatch.setattr(live, "top_noted", noted)
    ask(client, users=["u001"], diversity=0.3, only_items=["001", "002"])
    assert seen[-1] == {"diversity": 0.3, "only_items": ["001", "002"]}
    client.post("/events", json={"events": [{"user_id": "u002", "item_id": "001"}]})
    table = [{"user_id": user, "item_id": "003", "allow": False} for user in ("u001", "u002", "u003")]
    ask(client, users=["u001", "u002"], per_user=table)
    assert [rules["per_user"].rows() for rules in seen[-2:]] == [
        [("u001", "003", False)],
        [("u002", "003", False)],
    ]
    assert "x1" in ask(client, 404, users=["u001"], only_items=["x1"])["error"]
    ask(client, 422, users=["u001"], diversity=1.5)


def test_every_rule_of_the_recommender_can_be_asked_for() -> None:
    assert set(SearchOptions.__annotations__) | {"only"} <= set(RecommendBody.model_fields)
    asked = set(inspect.signature(Recommender.recommend).parameters) - {"self", "split", "columns", "rules"}
    assert asked <= set(RecommendBody.model_fields)
