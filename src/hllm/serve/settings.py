"""What a service is told, and its limits."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hllm.settings import Settings


class ServeSettings(Settings):
    """Settings of one worker. Times are in seconds, sizes in bytes.

    run           the run folder; a link to it, to change what is served by changing the link
    compare       another run, for the page to show beside it and for requests with "compared": true
    events        the sqlite file of live events and added items; None: beside the run, RUN.events.sqlite
    api_keys      any of them opens everything but the page, /docs, /health and /ready; none: open to all
    origins       sites whose pages may call the service from a browser (CORS); none: only its own page
    max_body      longest body of a request
    body_seconds  time in which a body must have arrived
    max_waiting   requests that wait for the model; one more gets 503 with Retry-After
    wait_seconds  longest time a request waits for its answer, then 503 with Retry-After
    max_batch     requests that are answered in one go
    """

    run: Path
    compare: Path | None = None
    events: Path | None = None
    device: str = "auto"
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    workers: int = Field(default=1, ge=1, le=256)
    max_body: int = Field(default=1 << 20, ge=1024)
    body_seconds: float = Field(default=10.0, gt=0)
    max_waiting: int = Field(default=256, ge=1)
    wait_seconds: float = Field(default=10.0, gt=0)
    max_batch: int = Field(default=64, ge=1)

    @property
    def events_file(self) -> Path:
        """Where events are kept: never inside the run's folder, which a new run may replace."""
        return self.events or self.run.with_name(f"{self.run.name}.events.sqlite")
