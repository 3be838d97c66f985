"""Live events, added items, search, and the endpoints that call `similar` and `explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    assert second.get("/items/new-1").status_code == 200
    for client in (first, second):
        assert "new-1" in recommended(client, users=["u001"], k=100)
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


def test_similar_gives_the_recommenders_rows(client: Any, recommender: Recommender) -> None:
    rules = {"k": 4, "exclude": ["002"], "diversify": "genres:1"}
    rows = client.post("/similar", json={"item": "001", **rules}).json()["rows"]
    expected = recommender.similar("001", **rules)
    assert [(r["item_id"], r["rank"]) for r in rows] == list(expected["item_id", "rank"].iter_rows())
    assert [r["score"] for r in rows] == pytest.approx(expected["score"].to_list(), abs=1e-5)
    assert all(row["title"] for row in rows)
    assert client.post("/similar", json={"item": "x1"}).status_code == 404
    assert client.post("/similar", json={"item": "001", "exclude": ["x1"]}).status_code == 404
    assert client.post("/similar", json={"text": "river"}).status_code in (200, 422)  # by what read the texts


def test_explain_gives_the_recommenders_reasons(serve: Any, recommender: Recommender) -> None:
    client = serve()

    def asked(**body: Any) -> Any:
        return client.post("/explain", json={"item": "002", **body}).json()

    for body, expected in (
        ({"user": "u001"}, recommender.explain("u001", "002")),
        ({"history": ["001", "006"]}, recommender.explain(item="002", history=["001", "006"])),
        (
            {"history": ["001", "006"], "times": [5, 9]},
            recommender.explain(item="002", history=["001", "006"], times=[5, 9]),
        ),
    ):
        said = asked(**body, k=2)
        assert said["score"] == pytest.approx(expected.score, abs=1e-5) and said["rank"] == expected.rank
        assert [r["item_id"] for r in said["reasons"]] == [r.item_id for r in expected.reasons[:2]]
        assert said["title"] in said["words"][0] and len(said["words"]) <= 4
    tell(client, {"user_id": "u001", "item_id": "003"})
    assert asked(user="u001")["events"] == recommender.explain("u001", "002").events + 1
    for body, status in (
        ({"user": "ghost"}, 404),
        ({"history": []}, 422),
        ({"user": "u001", "times": [1]}, 422),
    ):
        assert client.post("/explain", json={"item": "002", **body}).status_code == status


def test_two_runs_are_served_side_by_side(serve: Any, train: Any, tmp_path: Path) -> None:
    other = train(tmp_path / "other", seed=5)
    client, own = serve(compare=other), Recommender.from_pretrained(other, "cpu")
    about = client.get("/about").json()
    assert (about["run"]["name"], about["compared"]["run"]["name"]) == ("run", "other")
    body = {"users": ["u001"], "k": 5}
    first, second = (recommended(client, **body, compared=compared) for compared in (False, True))
    assert first != second == own.recommend(**body)["item_id"].to_list()
    tell(client, {"user_id": "u001", "item_id": second[0]})
    assert second[0] not in recommended(client, **body, compared=True)
    said = client.post("/explain", json={"history": ["001"], "item": "002", "compared": True}).json()
    assert said["score"] == pytest.approx(own.explain(item="002", history=["001"]).score, abs=1e-5)
    answer = serve(events=tmp_path / "other.sqlite").post("/recommend", json={**body, "compared": True})
    assert answer.status_code == 422 and "--compare" in answer.json()["error"]
