"""Latency and requests a second of a served run, in-process and over HTTP on loopback.

    python benchmarks/load.py --run runs/demo [--clients 1 16] [--requests 400] [--seconds 20] [--out FILE.json]
    python benchmarks/load.py --items 100000 --width 128 --layers 2

Three ways, one after another, each with the same histories of 10 to 30 events and k=10: `loop`, a plain loop of
`Recommender.recommend` in this process; `app`, the service called in this process without a network; `http`,
`hllm serve` as a process of its own on 127.0.0.1, asked over connections that are kept. Counts and time are bounded,
and nothing but loopback is ever asked. A request that is not answered with 200 ends the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from told import told

from hllm import Recommender, hardware
from hllm.artifacts import write_json
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.runs.build import build_network

K, MAX_REQUESTS, MAX_SECONDS, MAX_CLIENTS = 10, 100_000, 120, 64
JSON = {"content-type": "application/json"}


def untrained(items: int, width: int, layers: int, folder: Path) -> Path:
    """A run of random weights over `items` items, as large as a trained one."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"user_id": np.arange(items) // 10, "item_id": rng.permutation(items)})
    data = Dataset.from_tables(frame.with_columns(timestamp=pl.int_range(pl.len())), time_unit="index")
    config = load_config("sasrec", overrides={"d_model": width, "n_layers": layers, "n_heads": 4})
    Recommender(config, build_network(data, config, None).eval(), data).save_pretrained(folder)
    return folder


def bodies(recommender: Recommender, count: int) -> list[dict[str, Any]]:
    """Requests of anonymous users."""
    assert recommender.dataset is not None
    rng, ids = np.random.default_rng(1), recommender.dataset.item_ids
    rows = [rng.choice(len(ids), int(rng.integers(10, 31)), replace=False).tolist() for _ in range(count)]
    return [{"history": [[ids[place] for place in row]], "k": K} for row in rows]


def summed_up(seconds: list[float], wall: float) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, (50, 99)).tolist()
    return {
        "p50_ms": round(1e3 * p50, 2),
        "p99_ms": round(1e3 * p99, 2),
        "per_s": round(len(seconds) / wall, 1),
    }


def timed(
    call: Callable[[dict[str, Any]], None], asked: list[dict[str, Any]], limit: float
) -> dict[str, float]:
    """One client: each request after the answer to the last."""
    for body in asked[:10]:
        call(body)
    seconds, start = [], time.perf_counter()
    for body in asked:
        before = time.perf_counter()
        call(body)
        seconds.append(time.perf_counter() - before)
        if time.perf_counter() - start > limit:
            break
    return summed_up(seconds, time.perf_counter() - start)


async def in_process(app: Any, asked: list[dict[str, Any]], clients: int, limit: float) -> dict[str, float]:
    """The service without a network: its ASGI interface, called by `clients` tasks."""
    texts, seconds = iter([json.dumps(body).encode() for body in asked]), []
    headers = [(name.encode(), value.encode()) for name, value in JSON.items()]

    async def call(text: bytes) -> None:
        sent: list[Any] = []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
        }
        scope |= {"path": "/recommend", "raw_path": b"/recommend", "query_string": b"", "root_path": ""}
        scope |= {
            "headers": [*headers, (b"content-length", str(len(text)).encode())],
            "client": None,
            "server": None,
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": text, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)
        if sent[0]["status"] != 200:
            raise SystemExit(f"status {sent[0]['status']}: {sent[1]['body'][:200]!r}")

    async def client(end: float) -> None:
        for text in texts:
            before = time.perf_counter()
            await call(text)
            seconds.append(time.perf_counter() - before)
            if time.perf_counter() > end:
                break

    for body in asked[:10]:
        await call(json.dumps(body).encode())
    start = time.perf_counter()
    await asyncio.gather(*(client(start + limit) for _ in range(clients)))
    return summed_up(seconds, time.perf_counter() - start)


@contextlib.contextmanager
def served(run: Path, workers: int, folder: Path) -> Iterator[int]:
    """`hllm serve` on a free port of 127.0.0.1."""
    command = [sys.executable, "-m", "hllm", "serve", str(run), "--port", "0", "--device", "cpu"]
    command += ["--log-level", "warning", "--workers", str(workers), "--events", str(folder / "e.sqlite")]
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        assert process.stderr is not None
        port = int(process.stderr.readline().split(" at http://")[1].split()[0].split(":")[1])
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield port
    finally:
        process.terminate()
        process.wait(60)


def over_http(port: int, asked: list[dict[str, Any]], clients: int, limit: float) -> dict[str, float]:
    """`clients` threads, each with a connection of its own."""
    texts = iter([json.dumps(body) for body in asked])
    lock, seconds = threading.Lock(), []

    def client(end: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < end:
            with lock:
                text = next(texts, None)
            if text is None:
                break
            before = time.perf_counter()
            connection.request("POST", "/recommend", text, JSON)
            answer = connection.getresponse()
            said = answer.read()
            seconds.append(time.perf_counter() - before)
            if answer.status != 200:
                raise SystemExit(f"status {answer.status}: {said[:200]!r}")
        connection.close()

    start = time.perf_counter()
    threads = [threading.Thread(target=client, args=(start + limit,)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return summed_up(seconds, time.perf_counter() - start)


def wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the service did not become ready in a minute")


def measure(run: Path, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    from hllm.serve.app import create_app
    from hllm.serve.settings import ServeSettings

    recommender = Recommender.from_pretrained(run, "cpu")
    asked = bodies(recommender, args.requests)

    def plain(body: dict[str, Any]) -> None:
        recommender.recommend(**body)

    rows: list[dict[str, Any]] = [{"way": "loop", "clients": 1, **timed(plain, asked, args.seconds)}]
    print(rows[-1])
    app = create_app(ServeSettings(run=run, device="cpu", events=folder / "app.sqlite"))
    for clients in args.clients:
        found = asyncio.run(in_process(app, asked, clients, args.seconds))
        rows.append({"way": "app", "clients": clients, **found})
        print(rows[-1])
    with served(run, args.workers, folder) as port:
        wait_for(port)
        over_http(port, asked[:20], 1, args.seconds)
        for clients in args.clients:
            found = over_http(port, asked, clients, args.seconds)
            rows.append({"way": "http", "clients": clients, "workers": args.workers, **found})
            print(rows[-1])
    return rows


def priority() -> str:
    """How this process and what it starts are scheduled: on a busy machine `chrt -f 10` goes before other work."""
    if not hasattr(os, "sched_getscheduler"):
        return "normal"
    names = {os.SCHED_FIFO: "real time, first in first out", os.SCHED_RR: "real time, by turns"}
    return names.get(os.sched_getscheduler(0), "normal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run folder; without it one is made of --items")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--requests", type=int, default=400, help="of each way")
    parser.add_argument("--seconds", type=float, default=20, help="longest time of each way")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.requests > MAX_REQUESTS or args.seconds > MAX_SECONDS or max(args.clients) > MAX_CLIENTS:
        parser.error(f"at most {MAX_REQUESTS:,} requests, {MAX_SECONDS} seconds and {MAX_CLIENTS} clients")
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = args.run or untrained(args.items, args.width, args.layers, folder / "run")
        rows = measure(run, args, folder)
    if args.out is not None:
        unused = {"run", "out"} if args.run is None else {"run", "out", "items", "width", "layers"}
        settings = {k: v for k, v in vars(args).items() if k not in unused}
        document = {"date": datetime.date.today().isoformat(), "hardware": hardware.describe_hardware()}
        document |= {"versions": hardware.describe_versions(), "settings": settings}
        document |= {"load_average_before": round(load, 1), "priority": priority(), "rows": rows}
        write_json(args.out, document)


if __name__ == "__main__":
    told(main)
