"""Keys, overload, reloads, what a stop does to requests that began, metrics and logs."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hllm.errors import ArtifactError, ConfigError
from hllm.serve.app import checked
from hllm.serve.events import EventStore
from hllm.serve.logs import JsonLines
from hllm.serve.settings import ServeSettings

KEY = {"authorization": "Bearer secret-key-1"}


def test_a_key_opens_what_it_is_asked_for(serve: Any) -> None:
    client = serve(api_keys=("secret-key-1", "secret-key-2"))
    for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200, path
    for path in ("/metrics", "/about", "/search", "/users/u001", "/items/001"):
        assert client.get(path).status_code == 401, path
        assert client.get(path, headers=KEY).status_code == 200, path
    body = {"users": ["u001"]}
    assert client.post("/recommend", json=body).status_code == 401
    for headers in (KEY, {"x-api-key": "secret-key-2"}):
        assert client.post("/recommend", json=body, headers=headers).status_code == 200
    for wrong in ("Bearer secret-key", "Bearer secret-key-11", "secret-key-3", "Bearer", "Bearer \xe9"):
        answer = client.post("/recommend", json=body, headers={"authorization": wrong.encode("latin-1")})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["short", "with a space", "über-geheim", ""])
def test_a_key_must_be_sendable(run: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="8 or more"):
        checked(ServeSettings(run=run, api_keys=(key,)))


def test_cors_is_off_unless_asked_for(serve: Any, tmp_path: Path) -> None:
    origin = {"origin": "https://shop.example"}
    assert "access-control-allow-origin" not in serve().get("/about", headers=origin).headers
    client = serve(origins=("https://shop.example",), events=tmp_path / "other.sqlite")
    assert client.get("/about", headers=origin).headers["access-control-allow-origin"] == origin["origin"]
    other = client.get("/about", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_overload_is_503_with_a_time_to_come_again(serve: Any) -> None:
    client = serve(max_waiting=2)
    service, go = client.app.state.service, threading.Event()
    body = {"users": ["u001"], "k": 1}
    with ThreadPoolExecutor(8) as pool:
        held = client.portal.start_task_soon(service.batcher.call, go.wait)
        time.sleep(0.05)
        asked = [pool.submit(client.post, "/recommend", json=body) for _ in range(6)]
        while sum(one.done() for one in asked) < 4:
            time.sleep(0.01)
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        go.set()
        answers = [one.result() for one in asked]
        held.result()
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503, 503]
    assert {a.headers.get("retry-after") for a in answers if a.status_code == 503} == {"1"}
    assert client.get("/ready").status_code == 200


def test_a_reload_serves_the_new_run_and_a_broken_one_changes_nothing(
    serve: Any, train: Any, run: Path, tmp_path: Path
) -> None:
    current = tmp_path / "current"
    current.symlink_to(run, target_is_directory=True)
    other = train(tmp_path / "other", seed=5)
    broken = tmp_path / "broken"
    shutil.copytree(other, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    client = serve(current, api_keys=("secret-key-1",))

    def rows() -> Any:
        return client.post("/recommend", json={"users": ["u001"], "k": 5}, headers=KEY).json()["rows"]

    def point_to(folder: Path) -> Any:
        current.unlink()
        current.symlink_to(folder, target_is_directory=True)
        return client.post("/admin/reload", headers=KEY)

    before = rows()
    for bad in (broken, tmp_path / "nothing"):
        answer = point_to(bad)
        assert answer.status_code == 422 and answer.json()["error"]
        assert rows() == before
    stop, seen = threading.Event(), []

    def keep_asking() -> None:
        while not stop.is_set():
            answer = client.post("/recommend", json={"users": ["u001"], "k": 5}, headers=KEY)
            seen.append((answer.status_code, json.dumps(answer.json()["rows"])))

    old = weakref.ref(client.app.state.service.live)
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(keep_asking) for _ in range(2)]
        assert point_to(other).status_code == 200
        after = rows()
        stop.set()
        for one in asking:
            one.result()
    assert after != before
    assert point_to(other).status_code == 200
    assert old() is None  # a run that is no longer served leaves no memory behind
    assert {status for status, _ in seen} == {200}
    assert {text for _, text in seen} <= {json.dumps(before), json.dumps(after)}
    text = client.get("/metrics", headers=KEY).text
    assert "hllm_reloads_total 2\n" in text and "hllm_failed_reloads_total 2\n" in text


def test_a_reload_over_http_needs_keys(client: Any) -> None:
    assert client.post("/admin/reload").status_code == 403


def test_a_broken_run_is_not_served(tmp_path: Path) -> None:
    from hllm.serve.app import create_app

    with pytest.raises(ArtifactError, match="no run at"):
        create_app(ServeSettings(run=tmp_path / "nothing", device="cpu"))
    (tmp_path / "text.sqlite").write_text("no database at all, but text " * 99)
    with pytest.raises(ArtifactError, match="--events"):
        EventStore(tmp_path / "text.sqlite")


def test_requests_that_began_are_answered_at_a_stop(run: Path, tmp_path: Path) -> None:
    import asyncio

    from hllm.serve.service import Service

    async def main() -> list[Any]:
        service = Service(ServeSettings(run=run, device="cpu", events=tmp_path / "e.sqlite"))
        jobs = [
            asyncio.create_task(
                service.batcher.submit(None, [n], lambda values: (time.sleep(0.02), values)[1])
            )
            for n in range(5)
        ]
        await asyncio.sleep(0)
        await service.close()
        return await asyncio.gather(*jobs)

    assert asyncio.run(main()) == [[0], [1], [2], [3], [4]]


def test_metrics_count(serve: Any) -> None:
    client = serve()
    client.post("/recommend", json={"users": ["u001"]})
    client.post("/recommend", json={"users": ["ghost"]})
    for number in range(3):
        client.get(f"/nowhere/{number}")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'hllm_requests_total{method="POST",route="/recommend",status="200"} 1' in lines
    assert 'hllm_requests_total{method="POST",route="/recommend",status="404"} 1' in lines
    assert 'hllm_requests_total{method="GET",route="other",status="404"} 3' in lines
    assert 'hllm_request_seconds_bucket{route="/recommend",le="+Inf"} 2' in lines
    assert any(line.startswith("hllm_run_info{") for line in lines)


def test_the_log_has_a_line_a_request(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hllm.serve"):
        client.get("/health?x=%0A", headers={"x-request-id": "abc"})
    (record,) = (r for r in caplog.records if r.name == "hllm.serve")
    line = json.loads(JsonLines().format(record))
    assert (line["event"], line["id"], line["status"], line["path"]) == ("request", "abc", 200, "/health")


def test_a_fault_is_one_line_for_the_client(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    monkeypatch.setattr(client.app.state.service.live.recommender, "top_noted", lambda **_: 1 / 0)
    answer = client.post("/recommend", json={"users": ["u001"]})
    assert answer.status_code == 500
    assert "division" not in answer.text and answer.json()["request_id"]
