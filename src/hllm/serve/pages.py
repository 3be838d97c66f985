"""The pages: files of this package, sent with a policy that lets them load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import Response

PART = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">|<script src="(\w+\.js)"></script>')
INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def page(name: str) -> Callable[[], Awaitable[Response]]:
    """An endpoint for the page `name`, its style and script in it."""
    text = PART.sub(_inlined, _read(name))
    headers = {
        "content-security-policy": policy(text),
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    async def send() -> Response:
        return Response(text, media_type="text/html", headers=headers)

    return send


def _read(name: str) -> str:
    return (files("hllm.serve") / name).read_text(encoding="utf-8")


def _inlined(found: re.Match[str]) -> str:
    style, script = found.groups()
    return f"<style>\n{_read(style)}</style>" if style else f"<script>\n{_read(script)}</script>"


def policy(html: str) -> str:
    """A Content-Security-Policy for which only the page's own script and style run."""
    found: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        found[kind].append(f"'sha256-{digest}'")
    inline = "; ".join(f"{kind}-src {' '.join(found[kind]) or repr('none')}" for kind in found)
    return f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'; {inline}"
