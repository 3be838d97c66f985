"""Whatever JSON is sent to whichever endpoint: an answer of strict JSON, and never a 5xx."""

from __future__ import annotations

import json
from typing import Any

from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from hllm.serve.schemas import EXAMPLES, RecommendBody

NAMES = sorted(
    {name for model in EXAMPLES for name in model.model_fields} | {"user_id", "item_id", "timestamp"}
)
VALUES = st.sampled_from(
    ["u001", "001", "006", "ghost", "", "skip", "popular", "catalogue", "30d", "genres:1", "2001-01-01"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | VALUES | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=10,
)
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "users": st.lists(VALUES, max_size=3),
        "history": st.lists(st.lists(VALUES, max_size=4), max_size=3),
        "times": st.lists(st.none() | st.lists(st.integers(0, 99) | VALUES, max_size=4), max_size=3),
        "k": st.integers(-1, 99),
        "exclude": st.lists(VALUES, max_size=3),
        "candidates": VALUES | st.lists(VALUES, max_size=3),
        "unknown": VALUES,
        "keep_seen": st.booleans(),
    },
)


def sent(client: TestClient, path: str, body: Any) -> None:
    answer = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code < 500, (path, body, answer.text)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    said = json.loads(answer.content, parse_constant=refuse)
    assert answer.status_code < 300 or (said["error"] and "\n" not in said["error"]), said


@settings(max_examples=150)
@given(path=st.sampled_from(["/recommend", "/similar", "/explain", "/events", "/items"]), body=JSON)
def test_of_any_shape(client: TestClient, path: str, body: Any) -> None:
    sent(client, path, body)


@settings(max_examples=200)
@given(body=LIKELY)
def test_nearly_right(client: TestClient, body: dict[str, Any]) -> None:
    assert set(body) <= set(RecommendBody.model_fields)
    sent(client, "/recommend", body)


@settings(max_examples=60)
@given(text=st.text(max_size=30), k=st.integers(-2, 120))
def test_any_search(client: TestClient, text: str, k: int) -> None:
    assert client.get("/search", params={"q": text, "k": k}).status_code in (200, 422)
