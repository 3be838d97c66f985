"""Bodies that are wrong, huge, slow or malicious get a line, and never a 5xx."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[]",
        "NaN",
        '{"users": NaN}',
        '{"users": ["u001"], "k": NaN}',
        '{"users": ["u001"], "k": 1e999}',
        '{"users": ["u001"], "k": 0}',
        '{"users": ["u001"], "k": true}',
        '{"users": ["u001"], "k": "10"}',
        '{"users": ["u001"], "k": 99999999999999999999999}',
        '{"users": "u001"}',
        '{"users": []}',
        '{"users": [null]}',
        '{"users": [true]}',
        '{"users": [1.5]}',
        '{"users": [99999999999999999999]}',
        '{"users": [["u001"]]}',
        '{"users": ["\\ud83d"]}',
        '{"users": ["u001"], "titel": 1}',
        '{"users": ["u001", "u001"], "history": [["001"]]}',
        '{"history": [["001"]], "times": [[1, 2]]}',
        '{"history": [["001"]], "times": [[NaN]]}',
        '{"history": [["001"]], "times": [["soon"]]}',
        '{"history": [["001"]], "times": [[1], [2]]}',
        '{"history": [["001", "002"]], "times": [[2, 1]]}',
        '{"users": ["u001"], "times": [[1]]}',
        '{"titles": [[""]]}',
        '{"users": ["u001"], "unknown": "perhaps"}',
        '{"users": ["u001"], "candidates": "all"}',
        '{"users": ["u001"], "candidates": []}',
        '{"history": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"users": ["' + "x" * 600 + '"]}',
        '{"users": [' + ",".join(['"u001"'] * 257) + "]}",
        '{"users": [' + ",".join(['"u001"'] * 256) + '], "k": 1000}',
    ],
)
def test_a_wrong_body_is_told_in_a_line(client: TestClient, body: str) -> None:
    answer = client.post("/recommend", content=body, headers=JSON)
    assert answer.status_code in (200, 422) and answer.status_code == (
        200 if body.endswith('"candidates": []}') else 422
    )
    if answer.status_code == 422:
        error = answer.json()["error"]
        assert error and "\n" not in error and len(error) < 1000


@pytest.mark.parametrize("path", ["/similar", "/explain", "/events", "/items", "/recommend"])
@pytest.mark.parametrize(
    "body", ["{}", "[1]", '"x"', '{"items": [{}]}', '{"events": [{}]}', b"\xff\xfe", b"\x00"]
)
def test_no_endpoint_fails(client: TestClient, path: str, body: Any) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/items/nothing",
        "/items/..%2f..%2fetc%2fpasswd",
        "/items/%00",
        "/users/%ff",
        "/users/ghost",
        "/nowhere",
        "/items/" + "9" * 3000,
    ],
)
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert len(answer.json()["error"]) < 1000


@pytest.mark.parametrize("query", ["k=0", "k=101", "k=x", f"q={'a' * 600}"])
def test_a_search_has_limits(client: TestClient, query: str) -> None:
    assert client.get(f"/search?{query}").status_code == 422


def test_the_wrong_method_is_405(client: TestClient) -> None:
    assert client.get("/recommend").status_code == 405
    assert client.request("BREW", "/recommend").status_code == 405


def test_a_long_body_is_413(serve: Any) -> None:
    client = serve(max_body=2048)
    body = b'{"users": ["' + b"x" * 4000 + b'"]}'
    assert client.post("/recommend", content=body, headers=JSON).status_code == 413
    parts = (body[i : i + 100] for i in range(0, len(body), 100))  # without a length said before
    answer = client.post("/recommend", content=parts, headers=JSON)
    assert answer.status_code == 413
    assert "2,048 bytes" in answer.json()["error"]


def test_only_json_is_taken(client: TestClient) -> None:
    """A form or text is what another site's page could send in its visitor's name."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = client.post("/events", content=b'{"events": []}', headers={"content-type": kind})
        assert answer.status_code == 415
    assert client.post("/events", content=b"{}", headers={}).status_code == 415


def test_request_ids(client: TestClient) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    forged = client.get("/health", headers={"x-request-id": 'a" b\t{}'}).headers["x-request-id"]
    assert len(forged) == 32
    answer = client.get("/nowhere", headers={"x-request-id": "abc-2"})
    assert answer.json() == {"error": "Not Found", "request_id": "abc-2"}
