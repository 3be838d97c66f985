"""The state of one worker: the run it serves, its events, its queue, its counters."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
from contextlib import ExitStack, suppress
from typing import Any

from hllm.artifacts.locks import Busy, held
from hllm.errors import ConfigError, HLLMError
from hllm.hardware import release_memory
from hllm.serve.batching import Batcher
from hllm.serve.events import EventStore
from hllm.serve.live import Live
from hllm.serve.metrics import Metrics
from hllm.serve.settings import ServeSettings

WAIT_SECONDS = 1.0  # for other workers that reload, before looking whether this one is being stopped

log = logging.getLogger("hllm.serve")


class Service:
    """Raises HLLMError where the run or the file of events cannot be read."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.store = EventStore(settings.events_file)
        self.batcher = Batcher(settings.max_waiting, settings.max_batch, settings.wait_seconds)
        self.live, self.other = self._load()
        self.open = True
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    def _load_alone(self) -> tuple[Live, Live | None]:
        """Load while no other worker does: of all of them, only one has two runs in memory at a time."""
        lock = self.settings.events_file.with_name(f"{self.settings.events_file.name}.reload")
        while True:
            with ExitStack() as stack:
                try:
                    stack.enter_context(held(lock, WAIT_SECONDS))
                except Busy:
                    if self.open:
                        continue
                    raise
                return self._load()

    def _load(self) -> tuple[Live, Live | None]:
        run, other, device = self.settings.run, self.settings.compare, self.settings.device
        live = Live.load(run, device, self.store)
        return live, None if other is None else Live.load(other, device, self.store)

    async def run(self, compared: bool = False) -> Live:
        """The run that is served, or the one beside it, with all items added to any worker by now.

        Raises ConfigError where there is no run beside it.
        """
        live = self.other if compared else self.live
        if live is None:
            raise ConfigError("this service has one run; to compare two: hllm serve RUN --compare OTHER")
        if self.store.items_after(live.added)[1]:
            await self.batcher.call(lambda: live.catch_up(self.store))
        return live

    async def reload(self) -> Live:
        """Serve what is at the run's path now. Requests that began go on with the run of before; it stays
        if the new one is broken, which raises HLLMError."""
        async with self._reloading:
            try:
                self.live, self.other = await asyncio.to_thread(self._load_alone)
            except HLLMError as err:
                self.metrics.counts["failed_reloads"] += 1
                log.error("reload failed, the run of before goes on", extra={"fields": {"error": str(err)}})
                raise
            await asyncio.to_thread(tidy_memory)
            self.metrics.counts["reloads"] += 1
            log.info(
                "reloaded", extra={"fields": {"run": str(self.settings.run), "number": self.live.number}}
            )
            return self.live

    def reload_on_signal(self) -> None:
        """Reload at SIGHUP."""

        def begin() -> None:
            task = asyncio.create_task(self.reload())
            self._tasks.add(task)
            task.add_done_callback(self._done)

        try:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, begin)
        except (ValueError, RuntimeError, NotImplementedError, AttributeError):
            log.debug("no SIGHUP here")  # not the main thread, or Windows

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, HLLMError):  # those were told
            log.error("reload failed", exc_info=error)

    async def close(self) -> None:
        """Answer what waits, and end."""
        self.open = False
        await self.batcher.close()
        async with self._reloading:  # which reads the store
            self.store.close()

    def gauges(self) -> dict[str, float]:
        """Values of now, for /metrics."""
        data = self.live.data
        return {
            "waiting": self.batcher.waiting,
            "model_calls": self.batcher.batches,
            "model_jobs": self.batcher.batched,
            "run_number": self.live.number,
            "run_loaded_seconds": self.live.since,
            "items": data.n_catalogue,
            "users": data.n_users,
        }


def reload_workers() -> None:
    """Ask the parent of several workers to let all of them reload."""
    os.kill(os.getppid(), signal.SIGHUP)


def tidy_memory() -> None:
    """Give back what no run needs any more, and let collections of garbage pass over what stays: looking through a
    run and all modules holds up every request for tenths of a second."""
    gc.unfreeze()
    release_memory()
    with suppress(
        OSError, AttributeError, TypeError
    ):  # the C library of Linux alone keeps it to itself otherwise
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()
