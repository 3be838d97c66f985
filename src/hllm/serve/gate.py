"""What every request passes: its id, its key, the limits of its body, the log and the counters."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from hllm.serve.metrics import Metrics
from hllm.serve.settings import ServeSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = {"/", "/health", "/ready", "/docs", "/openapi.json"}  # without a key
REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
BODIED = {"POST", "PUT", "PATCH"}
log = logging.getLogger("hllm.serve")


class Refused(Exception):
    """An answer before the request reaches its endpoint."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class Gate:
    """ASGI middleware. The request id is the client's `X-Request-ID`, or a new one, and is sent back."""

    def __init__(self, app: Any, settings: ServeSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        headers = {name.decode("latin-1").lower(): value for name, value in scope["headers"]}
        given = headers.get("x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            self._check_key(scope, headers)
            body = await self._body(scope, headers, receive)
            await self.app(scope, _replayed(body, receive), answer)
        except Refused as refused:
            await _refuse(answer, refused, request_id)
        except Exception as err:
            log.error("fault", exc_info=err, extra={"fields": {"id": request_id}})
            if status:  # the answer has begun: only breaking off tells the client
                raise
            fault = Refused(500, "a fault of the service; its log says more under this request_id")
            await _refuse(answer, fault, request_id)
        finally:
            self._note(scope, request_id, status, time.perf_counter() - start)

    def _check_key(self, scope: Scope, headers: dict[str, bytes]) -> None:
        if not self._keys or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return
        given = headers.get("x-api-key") or headers.get("authorization", b"").removeprefix(b"Bearer ")
        if not sum(hmac.compare_digest(given, key) for key in self._keys):  # all: in constant time
            raise Refused(
                401,
                "this service asks for a key; send it as Authorization: Bearer KEY",
                **{"www-authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, headers: dict[str, bytes], receive: Receive) -> bytes:
        """The whole body, of at most `max_body` bytes, within `body_seconds`."""
        if scope["method"] not in BODIED:
            return b""
        limit, seconds = self.settings.max_body, self.settings.body_seconds
        length = headers.get("content-length", b"0")
        too_long = Refused(413, f"the body is longer than {limit:,} bytes", connection="close")
        if length.isdigit() and int(length[:20]) > limit:
            raise too_long
        # A page of another site can post text and forms without asking; it cannot post this.
        kind = headers.get("content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json" and length != b"0":
            raise Refused(415, "send JSON, with Content-Type: application/json", connection="close")
        parts, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(400, "the client went away")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_long
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(408, f"the body took longer than {seconds:g} s", connection="close") from None

    def _note(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = (
            scope["method"] if scope["method"] in {"GET", "DELETE", "HEAD", "OPTIONS", *BODIED} else "other"
        )
        self.metrics.request(method, route, status, seconds)
        client = scope.get("client")
        fields = {"id": request_id, "method": method, "path": scope["path"][:200], "status": status}
        fields |= {"ms": round(1e3 * seconds, 2), "client": client[0] if client else None}
        log.info("request", extra={"fields": fields})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` for the endpoint, which finds the body as one message."""
    first: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return first.pop() if first else await receive()

    return replay


async def _refuse(send: Send, refused: Refused, request_id: str) -> None:
    body = json.dumps({"error": str(refused), "request_id": request_id}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
