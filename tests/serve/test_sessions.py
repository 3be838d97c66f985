"""Live events, added items, search, and the endpoints that call `similar` and `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hllm import Recommender
from hllm.serve.events import EventStore


def recommended(client: Any, **body: Any) -> list[Any]:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return [row["item_id"] for row in answer.json()["rows"]]


def tell(client: Any, *events: dict[str, Any]) -> Any:
    return client.post("/events", json={"events": events})


def test_events_make_a_stranger_known(serve: Any, recommender: Recommender) -> None:
    client = serve()
    assert client.post("/recommend", json={"users": ["new"]}).status_code == 404
    assert tell(
        client, {"user_id": "new", "item_id": "001"}, {"user_id": "new", "item_id": "006"}
    ).json() == {"kept": 2}
    expected = recommender.recommend(history=[["001", "006"]], k=5)["item_id"].to_list()
    assert recommended(client, users=["new"], k=5) == expected
    assert client.get("/users/new").json()["rows"][0]["item_id"] == "006"
    assert client.delete("/events/new").json() == {"forgotten": 2}
    assert client.post("/recommend", json={"users": ["new"]}).status_code == 404


def test_events_go_on_a_known_history(serve: Any, recommender: Recommender) -> None:
    client = serve()
    data = recommender.dataset
    assert data is not None
    before = recommended(client, users=["u001", "u002"], k=5)
    row = data.row_of("u001")
    part = slice(int(data.offsets[row]), int(data.offsets[row + 1]))
    history = [data.item_ids[token - 1] for token in data.tokens[part].tolist()]
    times = data.times[part].tolist()
    new = next(item for item in data.item_ids if item not in history)
    tell(client, {"user_id": "u001", "item_id": new, "timestamp": times[-1] + 60.0})
    after = recommended(client, users=["u001", "u002"], k=5)
    assert after[5:] == before[5:]
    wanted = recommender.recommend(history=[[*history, new]], times=[[*times, times[-1] + 60]], k=5)
    assert after[:5] == wanted["item_id"].to_list()
    assert new not in after[:5]


def test_an_event_of_long_ago_breaks_nothing(serve: Any) -> None:
    client = serve()
    assert tell(client, {"user_id": "u001", "item_id": "001", "timestamp": 5}).status_code == 201
    assert len(recommended(client, users=["u001"], k=3)) == 3


def test_events_are_kept_all_or_none(serve: Any) -> None:
    client = serve()
    answer = tell(client, {"user_id": "new", "item_id": "001"}, {"user_id": "new", "item_id": "x1"})
    assert answer.status_code == 404 and "'x1'" in answer.json()["error"]
    assert client.get("/users/new").status_code == 404


def test_the_store_keeps_sessions_and_has_one_user_an_id(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "e.sqlite")
    store.add([(196, "a", 5.0), ("196", 7, 3.0), ("o'x\x00y", "b", 1.0)])
    store.close()
    again = EventStore(tmp_path / "e.sqlite")
    assert again.of("196") == again.of(196) == [(7, 3.0), ("a", 5.0)]
    assert again.of("o'x\x00y") == [("b", 1.0)]
    again.add([("u", n, float(n)) for n in range(1200)])
    assert [item for item, _ in again.of("u")] == list(range(200, 1200))


NEW = {"item_id": "new-1", "title": "A new film"}


def test_added_items_are_recommendable_in_every_worker(serve: Any) -> None:
    first, second = serve(), serve()  # of one file of events
    assert first.post("/items", json={"items": [NEW]}).status_code == 201
    assert first.get("/items/new-1").json()["title"] == "A new film"
    assert first.get("/search?q=NEW FILM").json()["rows"][0]["item_id"] == "new-1"
    for client in (first, second):
        assert "new-1" in recommended(client, users=["u001"], k=100)
    assert second.get("/items/new-1").status_code == 200
    again = first.post("/items", json={"items": [NEW]})
    assert again.status_code == 422 and "new-1" in again.json()["error"]
    assert "new-1" in recommended(serve(), history=[["001"]], k=100)  # after a new start


@pytest.mark.parametrize(
    "items",
    [[{"title": "x"}], [{"item_id": "n", "title": ["a"]}, {"item_id": "m", "title": 3}], [{"item_id": None}]],
)
def test_items_that_cannot_be_added_change_nothing(serve: Any, items: Any) -> None:
    client = serve()
    count = client.get("/about").json()["items"]
    answer = client.post("/items", json={"items": items})
    assert answer.status_code == 422, answer.text
    assert client.get("/about").json()["items"] == count


def test_search_finds_by_title(client: Any, recommender: Recommender) -> None:
    assert recommender.dataset is not None
    title = recommender.dataset.items["title"][3]
    rows = client.get("/search", params={"q": title.upper()}).json()["rows"]
    assert rows[0]["title"] == title
    assert len(client.get("/search", params={"k": 7}).json()["rows"]) == 7
    assert client.get("/search?q=qqqq").json()["rows"] == []


def test_similar_and_explain_call_the_recommenders_own(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def similar(self: Any, item: Any = None, text: Any = None, k: int = 10) -> pl.DataFrame:
        assert (item, text, k) == ("001", None, 2)
        return pl.DataFrame({"item_id": ["002", "003"], "score": [0.5, float("nan")], "rank": [1, 2]})

    def explain(
        self: Any, user: Any = None, item: Any = None, *, history: Any = None, times: Any = None
    ) -> dict[str, Any]:
        asked = {"user": user, "history": history, "timed": times is not None}
        reasons = [{"item_id": "001", "share": 0.5, "change": float("inf")}] * 9
        return {"item_id": item, "asked": asked, "reasons": reasons}

    monkeypatch.setattr(Recommender, "similar", similar, raising=False)
    monkeypatch.setattr(Recommender, "explain", explain, raising=False)
    client = serve()
    rows = client.post("/similar", json={"item": "001", "k": 2}).json()["rows"]
    assert [(row["item_id"], row["score"]) for row in rows] == [("002", 0.5), ("003", None)]
    assert all(row["title"] for row in rows)
    assert client.post("/similar", json={"item": "x1"}).status_code == 404
    said = client.post("/explain", json={"user": "u001", "item": "002", "k": 3}).json()
    assert said["item_id"] == "002"
    assert said["asked"] == {"user": "u001", "history": None, "timed": False}
    assert [(row["share"], row["change"]) for row in said["reasons"]] == [(0.5, None)] * 3
    assert all(row["title"] for row in said["reasons"])
    tell(client, {"user_id": "new", "item_id": "001"})
    for body, timed in (({"user": "new"}, True), ({"history": ["001"]}, False)):
        said = client.post("/explain", json={**body, "item": "002"}).json()
        assert said["asked"] == {"user": None, "history": ["001"], "timed": timed}
    assert client.post("/explain", json={"user": "ghost", "item": "002"}).status_code == 404


def test_without_them_they_are_404(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("similar", "explain"):
        monkeypatch.setattr(Recommender, name, None, raising=False)
    client = serve()
    assert client.post("/similar", json={"item": "001"}).status_code == 404
    about = client.get("/about").json()
    assert about["similar"] is about["explain"] is False
