"""The server around the app: one process, or several that share a socket."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from hllm.errors import ConfigError, HLLMError
from hllm.pipeline import Recommender
from hllm.runs.folder import read_record
from hllm.serve.app import checked, create_app
from hllm.serve.events import EventStore
from hllm.serve.logs import set_up_logs
from hllm.serve.protocol import Protocol
from hllm.serve.service import tidy_memory
from hllm.serve.settings import ServeSettings

STOP_SECONDS = 30  # in which requests that began are answered when the service is stopped
SIGN_OF_LIFE = 30  # seconds in which a worker must show one, importing torch included, or it is replaced
IDLE_SECONDS = (
    75  # that a kept connection may rest: more than the 60 of most proxies, so that they close it first
)
TRY_AGAIN = 2  # seconds before a worker that cannot load its run is started again


def run_server(
    settings: ServeSettings, host: str, port: int, level: str, tell: Callable[[str], None]
) -> None:
    """Serve until SIGINT or SIGTERM; `tell` is given the address. Raises HLLMError where it cannot begin."""
    checked(settings)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs = [settings.run] if settings.compare is None else [settings.run, settings.compare]
    for run in runs:
        read_record(run)  # before anything slow
    several = settings.workers > 1
    if several:  # what would fail in every worker is told here
        for run in runs:
            Recommender.from_pretrained(run, "cpu")
        EventStore(settings.events_file).close()
    config = uvicorn.Config(
        partial(worker_app, settings, level) if several else loaded_app(settings),
        factory=several,
        host=host,
        port=port,
        workers=settings.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_worker_healthcheck=SIGN_OF_LIFE,
        lifespan="on",
        http=Protocol,
    )
    sockets = [bound(config)]
    name, number = sockets[0].getsockname()[:2]
    address = f"[{name}]" if ":" in name else name
    tell(f"serving {settings.run} at http://{address}:{number} (page), /docs (interface); Ctrl-C stops")
    set_up_logs(level)
    if several:
        Workers(config, sockets=sockets).run()
    else:
        uvicorn.Server(config).run(sockets=sockets)


class Workers(Multiprocess):
    """Several workers. At SIGHUP each loads the run anew (`Service.reload`): none ends, so no connection does."""

    def restart_all(self) -> None:
        for worker in self.processes:
            if worker.pid is not None and worker.process.is_alive():
                # One that is still loading has no handler yet and dies of it; its successor finds the new run.
                os.kill(worker.pid, signal.SIGHUP)

    def keep_subprocess_alive(self) -> None:
        for worker in self.processes:
            # The workers' own end of their pipe. While it is open here too, a worker that ends when it is asked for
            # a sign of life is waited for until SIGN_OF_LIFE is over, and its successor with it.
            worker.child_conn.close()
        super().keep_subprocess_alive()


def bound(config: uvicorn.Config) -> Any:
    """The socket, listening for all workers. Raises ConfigError where the address is taken."""
    import socket

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once instead of 40 ms later (Nagle).
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((config.host, config.port))
    except OSError as err:
        found.close()
        other = "--port" if err.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise ConfigError(
            f"cannot listen at {config.host}:{config.port} ({err.strerror or err}); choose another {other}"
        ) from err
    found.set_inheritable(True)
    return found


def loaded_app(settings: ServeSettings) -> Any:
    """The app, with memory made ready for a long life."""
    app = create_app(settings)
    tidy_memory()
    return app


def worker_app(settings: ServeSettings, level: str) -> Any:
    """The app of one of several workers. A run that became broken ends the worker with a line in the log; the
    parent tries again, and the other workers go on with the run they have."""
    set_up_logs(level)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        return loaded_app(settings)
    except HLLMError as err:
        logging.getLogger("hllm.serve").error("not ready", extra={"fields": {"error": str(err)}})
        time.sleep(TRY_AGAIN)
        sys.exit(1)  # not uvicorn's STARTUP_FAILURE, for which the parent would stop all of them


def end_with_parent() -> None:
    """Stop this worker when its parent is gone, even by kill -9: nobody else would, and it holds the port."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
