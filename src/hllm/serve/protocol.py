"""uvicorn's HTTP protocol, with a limit on how long a client may take over the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 10.0  # from the connection, or a request's first byte, to the end of its head

Base: Any = AutoHTTPProtocol  # by httptools where it is installed, else by h11


class Protocol(Base):
    """Closes connections whose request does not come. uvicorn itself would keep one that sent half a head, or
    nothing at all, for ever; the time of bodies is limited by the gate."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
