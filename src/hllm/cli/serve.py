"""`hllm serve RUN`: recommendations over HTTP, and a page to try them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console
from hllm.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it, or a link to one.")],
    compare: Annotated[
        Path | None, typer.Option(help="Another run: the page shows both side by side.", metavar="RUN")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes, each with the whole run.")] = 1,
    api_key: Annotated[
        list[str],
        typer.Option(help="A key that requests must send, any number of times; or HLLM_API_KEY=KEY,KEY."),
    ] = [],  # noqa: B006
    allow_origin: Annotated[
        list[str],
        typer.Option(help="A site whose pages may call the service (CORS), as https://shop.example."),
    ] = [],  # noqa: B006
    events: Annotated[
        Path | None, typer.Option(help="The sqlite file of live events. [RUN.events.sqlite beside the run]")
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; others get 503.")] = 256,
    timeout: Annotated[
        float, typer.Option(min=0.01, help="Seconds a request may wait for its answer.")
    ] = 10.0,
    max_body: Annotated[int, typer.Option(min=1024, help="Longest body, in bytes.")] = 1 << 20,
    log_level: Annotated[
        str, typer.Option(help="debug, info, warning or error; warning: no line a request.")
    ] = "info",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Serve a run: POST /recommend and more (see /docs), and a page at /. SIGHUP loads the run anew."""
    try:
        import fastapi as _fastapi  # noqa: F401
        import uvicorn as _uvicorn  # noqa: F401
    except ImportError as err:
        raise ConfigError(f"hllm serve needs {err.name}; install it with: pip install 'hllm[serve]'") from err
    if log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level {log_level!r}; valid: debug, info, warning, error")
    from hllm.runs.folder import read_record

    for path in filter(None, (run, compare)):
        read_record(path)  # a mistake is answered before torch is there
    from hllm.serve.run import run_server
    from hllm.serve.settings import ServeSettings

    keys = [*api_key, *filter(None, os.environ.get("HLLM_API_KEY", "").split(","))]
    settings = ServeSettings(
        run=run,
        compare=compare,
        events=events,
        device=device,
        api_keys=tuple(keys),
        origins=tuple(allow_origin),
        workers=workers,
        max_body=max_body,
        max_waiting=max_waiting,
        wait_seconds=timeout,
    )
    if not keys and host not in LOOPBACK:
        console.note(f"anybody who reaches {host} may use the service and add items; see --api-key")
    run_server(settings, host, port, log_level, console.note)
