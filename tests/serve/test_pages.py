"""The pages: nothing from elsewhere, only their own script, and a description that is whole."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from typing import Any

import pytest


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_from_elsewhere(client: Any, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    html = answer.text
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", html)
    assert "@import" not in html and "url(" not in html
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "<script src" not in html and "stylesheet" not in html
    for text in re.findall(r"<script>(.*?)</script>", html, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not re.search(r"""\s(style|on[a-z]+)\s*=\s*["']""", html)  # the policy would stop them


def test_a_page_writes_what_users_named_as_text() -> None:
    """Titles and ids are anybody's: none of them is ever read as HTML."""
    for name in ("page.html", "page.js", "docs.html"):
        text = (files("hllm.serve") / name).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_the_description_of_the_interface_is_whole(client: Any) -> None:
    api = client.get("/openapi.json").json()
    assert {"/recommend", "/similar", "/search", "/explain", "/events", "/items", "/health", "/ready"} <= set(
        api["paths"]
    )
    text = json.dumps(api)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in api["components"]["schemas"]
    for path, methods in api["paths"].items():
        for method, of in methods.items():
            assert of["description"], f"{method} {path}"
    body = api["components"]["schemas"]["RecommendBody"]
    assert body["additionalProperties"] is False and "history" in body["properties"]
