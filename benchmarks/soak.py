"""A served run under load for minutes, while it is reloaded again and again and a worker is killed.

    python benchmarks/soak.py --run runs/demo [--seconds 600] [--workers 2] [--clients 4] [--out FILE.json]

What the service can answer is measured first; then `share` of it is asked for, by clients on loopback. Every answer
is compared with the rows of `Recommender.recommend` in this process: known users, histories, and a user whose events
were posted at the beginning. Told at the end: answers by status; wrong ones; requests that broke off, those that were
under way when the worker was killed apart; and the memory of all processes of the service in the first and last
quarter. Clients keep their connections and, as HTTP clients do, see whether one was closed while it rested.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import os
import select
import signal
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import load
import numpy as np
import torch
from told import told

from hllm import Recommender, hardware
from hllm.artifacts import write_json

Rows = list[tuple[Any, float]]
CLOSE = 1e-4  # scores of a batch differ from those of a single request by rounding


def asked_and_expected(recommender: Recommender, count: int) -> list[tuple[dict[str, Any], Rows]]:
    """Requests and their rows: histories and known users in turn, and last the user of the live session."""
    assert recommender.dataset is not None
    bodies = load.bodies(recommender, count)
    users = recommender.dataset.user_ids
    for number in range(0, count, 2):
        bodies[number] = {"users": [users[number % len(users)]], "k": load.K}
    expected = [recommender.recommend(**body) for body in bodies]
    pairs = [
        (b, list(zip(f["item_id"], f["score"], strict=True))) for b, f in zip(bodies, expected, strict=True)
    ]
    session = ({"users": ["soak-session"], "k": load.K}, pairs[-1][1])  # its events are the last history's
    return [*pairs, session]


def wrong(found: list[dict[str, Any]], expected: Rows) -> bool:
    """Whether an answer is another than expected; items whose scores are equal but for rounding may change places."""
    if len(found) != len(expected):
        return True
    near = all(abs(row["score"] - score) <= CLOSE for row, (_, score) in zip(found, expected, strict=True))
    last = expected[-1][1] + CLOSE  # beside the last place stand items that were left out
    inner = {row["item_id"] for row in found if row["score"] > last} <= {item for item, _ in expected}
    return not (near and inner)


def processes(pid: int) -> list[int]:
    """The children of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory(server: int) -> float:
    """Proportional memory of the service, MiB."""
    total = 0
    for pid in [server, *processes(server)]:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def kill(worker: int) -> tuple[float, float]:
    """Kill -9 a process; when that began, and when its connections were gone."""
    before = time.perf_counter()
    os.kill(worker, signal.SIGKILL)
    while Path(f"/proc/{worker}/fd").exists() and any(Path(f"/proc/{worker}/fd").iterdir()):
        time.sleep(0.001)
    return before, time.perf_counter()


class Clients:
    """Threads that ask at an even rate and count what comes."""

    def __init__(
        self, port: int, pairs: list[tuple[dict[str, Any], Rows]], clients: int, rate: float
    ) -> None:
        self.port, self.pairs, self.gap = port, pairs, clients / rate
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.broken: list[tuple[float, float]] = []  # when the request began, when it broke off
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(n, clients)) for n in range(clients)]

    def _run(self, first: int, step: int) -> None:
        connection, number, due = self._connected(), first, time.perf_counter()
        while not self.stop.is_set():
            body, expected = self.pairs[number % len(self.pairs)]
            number += step
            before = time.perf_counter()
            if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
                self.counts["connections closed at rest"] += 1
                connection.close()
            try:
                connection.request("POST", "/recommend", json.dumps(body), load.JSON)
                answer = connection.getresponse()
                said = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self.broken.append((before, time.perf_counter()))
                connection.close()
                connection = self._connected()
                continue
            self.seconds.append(time.perf_counter() - before)
            self.counts[f"status {answer.status}"] += 1
            if answer.status == 200 and wrong(said["rows"], expected):
                self.counts["wrong"] += 1
            due = max(due + self.gap, time.perf_counter() - 1)
            time.sleep(max(0.0, due - time.perf_counter()))

    def _connected(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)


def soak(run: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    pairs = asked_and_expected(Recommender.from_pretrained(run, "cpu"), 101 + 1)
    with load.served(run, args.workers, folder) as port:
        load.wait_for(port)
        (server,) = (
            pid for pid in processes(os.getpid()) if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        events = [{"user_id": "soak-session", "item_id": item} for item in pairs[-2][0]["history"][0]]
        events = [{**event, "timestamp": 2e9 + n} for n, event in enumerate(events)]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/events", json.dumps({"events": events}), load.JSON)
        assert connection.getresponse().status == 201
        most = load.over_http(port, [body for body, _ in pairs] * 50, args.clients, 5)["per_s"]
        clients = Clients(port, pairs, args.clients, args.share * most)
        for thread in clients.threads:
            thread.start()
        start, sizes, done, killed = time.monotonic(), [], 0, (0.0, 0.0)
        while (passed := (time.monotonic() - start) / args.seconds) < 1:
            if passed > (done + 1) / (args.reloads + 1):
                os.kill(server, signal.SIGHUP)
                done += 1
            if passed > 0.55 and not killed[1]:
                workers = [
                    p for p in processes(server) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()
                ]
                killed = kill(workers[0])
            sizes.append(memory(server))
            time.sleep(min(1.0, args.seconds / 60))
        clients.stop.set()
        for thread in clients.threads:
            thread.join()
    quarter = len(sizes) // 4
    p50, p99 = (1e3 * np.percentile(clients.seconds, (50, 99))).round(1).tolist()
    under_way = sum(began <= killed[1] and broke >= killed[0] for began, broke in clients.broken)
    counts = {"wrong": 0, "broken": len(clients.broken) - under_way, "broken by the kill": under_way}
    counts |= clients.counts
    first, last = float(np.median(sizes[:quarter])), float(np.median(sizes[-quarter:]))
    return {
        **{"most_per_s": most, "asked_per_s": round(len(clients.seconds) / args.seconds, 1), "reloads": done},
        **{"killed_workers": int(killed[1] > 0), "counts": counts, "p50_ms": p50, "p99_ms": p99},
        **{"memory_mib_first_quarter": round(first), "memory_mib_last_quarter": round(last)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.8, help="of what the service can answer")
    parser.add_argument("--reloads", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.workers < 2 or args.seconds > 3600 or args.clients > load.MAX_CLIENTS:
        parser.error(f"at least 2 workers, at most 3600 seconds and {load.MAX_CLIENTS} clients")
    torch.set_num_threads(1)
    before = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as name:
        found = soak(args.run, args, Path(name))
    print(json.dumps(found))
    if args.out is not None:
        settings = {k: v for k, v in vars(args).items() if k not in ("run", "out")}
        document = {"date": datetime.date.today().isoformat(), "hardware": hardware.describe_hardware()}
        document |= {
            "versions": hardware.describe_versions(),
            "settings": settings,
            "load_average_before": before,
        }
        write_json(args.out, {**document, "result": found})
    if found["counts"]["wrong"] or found["counts"]["broken"]:
        raise SystemExit(
            f"{found['counts']['wrong']} wrong answers, {found['counts']['broken']} broken requests"
        )


if __name__ == "__main__":
    told(main)
