"""Users a second whose held-out item is ranked among a large catalogue on a GPU, exactly.

    python benchmarks/ranking_gpu.py [--users 4096] [--items 400000] [--width 2048] [--out FILE.json]

Vectors are random unit rows, queries are given (a user model takes time of its own), histories of 20 events are hidden.
`tiles` is `target_ranks`; `products` are cuBLAS's alone. Ranks are compared with those of float64 on --check users.
--device cpu is for a try.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from told import told
from torch import Tensor

from hllm import hardware
from hllm.artifacts import write_json
from hllm.data.batches.queries import Queries
from hllm.evaluate.ranking import RankOptions, target_ranks, top_k
from hllm.kernels.halves import halved
from hllm.models.hllm import ItemTable

EVENTS = 20


class Rows:
    """Given queries against given rows: a `Ranker`."""

    def __init__(self, queries: Tensor, rows: Tensor) -> None:
        self.queries, self.rows = queries, rows
        self.table = ItemTable(rows, rows, 1.0, halved(rows))

    def query(self, batch: Any) -> Tensor:
        return self.queries[batch.users]

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        return self.table.scores(query, tokens)

    def score_range(self, query: Tensor, first: int, stop: int) -> Tensor:
        return self.table.scores(query, slice(first, stop))

    def all_finite(self, query: Tensor) -> bool:
        return True


def unit(n: int, width: int, device: torch.device) -> Tensor:
    made = torch.empty(n, width, device=device)
    for part in made.split(1 << 16):
        torch.nn.functional.normalize(torch.randn(part.shape, device=device), dim=1, out=part)
    return made


def seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, Any]:
    """The median of `repeats` calls after one, and what it returned."""
    found, given = [], None
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        given = call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return sorted(found[1:])[repeats // 2], given


def exact(ranker: Rows, queries: Queries, n: int) -> np.ndarray:
    """Ranks of the first `n` queries by float64 scores."""
    found = []
    for u in range(n):
        scores = torch.cat(
            [part.double() @ ranker.queries[u].double() for part in ranker.rows.split(1 << 15)]
        )
        target = scores[queries.targets[u]].clone()
        scores[0] = -torch.inf
        scores[torch.from_numpy(queries.tokens[u * EVENTS : (u + 1) * EVENTS]).long()] = -torch.inf
        mine = queries.targets[u] in queries.tokens[u * EVENTS : (u + 1) * EVENTS]
        found.append(0 if mine else int((scores >= target).sum()))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=4096)
    parser.add_argument("--items", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batch-users", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--check", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device, rng = hardware.pick_device(args.device), np.random.default_rng(0)
    torch.manual_seed(0)
    n, u = args.items, args.users
    ranker = Rows(unit(u, args.width, device) / 0.07, unit(n + 1, args.width, device))
    tokens = rng.integers(1, n + 1, u * EVENTS).astype(np.int32)
    starts = np.arange(u) * EVENTS
    queries = Queries(
        np.arange(u),
        rng.integers(1, n + 1, u),
        starts,
        starts + EVENTS,
        tokens,
        np.zeros(len(tokens), np.int64),
    )
    document: dict[str, Any] = {
        "benchmark": "ranking_gpu", "date": datetime.date.today().isoformat(), "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(), "versions": hardware.describe_versions(),
        "settings": {name: value for name, value in vars(args).items() if name != "out"}, "rows": [],
    }  # fmt: skip

    def add(row: dict[str, Any]) -> None:
        document["rows"].append(row)
        print(row, flush=True)
        if args.out is not None:
            write_json(args.out, document)

    truth = exact(ranker, queries, min(args.check, u))

    def rank(batch_users: int) -> Any:
        options = RankOptions(np.arange(1, n + 1), device=device, batch_users=batch_users)
        return target_ranks(ranker, queries, options)

    for size in args.batch_users:
        took, found = seconds(lambda size=size: rank(size), device, args.repeats)
        differ = np.abs(found.ranks[: len(truth)] - truth)
        errors = {"ranks_not_of_float64": int((differ > 0).sum()), "by_at_most": int(differ.max())}
        add({"way": "tiles", "batch_users": size, "seconds": took, "users_per_second": u / took} | errors)
    options = RankOptions(np.arange(1, n + 1), device=device, batch_users=args.batch_users[0])
    took, _ = seconds(lambda: top_k(ranker, queries, options, 10), device, 1)
    add(
        {
            "way": "top_k, tiles",
            "batch_users": args.batch_users[0],
            "seconds": took,
            "users_per_second": u / took,
        }
    )
    for dtype in (torch.float32, torch.bfloat16):
        part, rows = ranker.queries[:512].to(dtype), ranker.rows.to(dtype)
        took, _ = seconds(
            lambda part=part, rows=rows: [part @ t.T for t in rows.split(1 << 16)], device, args.repeats
        )
        add(
            {
                "way": f"products, {str(dtype)[6:]}",
                "batch_users": 512,
                "seconds": took,
                "users_per_second": 512 / took,
            }
        )
        del rows


if __name__ == "__main__":
    told(main)
