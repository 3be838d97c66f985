"""CPU seconds and memory of ranking users against a large catalogue: ranks of held-out items, and top-k lists.

    python benchmarks/ranking.py [--users 10000] [--items 1000000] [--width 64] [--threads 2] [--out FILE.json]

The model is a small one with random weights over ID embeddings: what is measured is the ranking engine. `floor` is
the matrix products alone, in tiles of the same size.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from told import told

from hllm import hardware
from hllm.artifacts import write_json
from hllm.data.batches.queries import Queries
from hllm.evaluate.ranking import BATCH_USERS, RankOptions, target_ranks, top_k
from hllm.evaluate.tiles import TILE_SCORES
from hllm.items.source.ids import Ids
from hllm.models.config import ScorerConfig, UsersConfig
from hllm.models.gated import GatedUserModel
from hllm.models.hllm import HLLM, Network
from hllm.models.scorers import make_scorer

EVENTS = 20  # of each history


def seconds(call: Callable[[], object]) -> dict[str, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return {"cpu": round(time.process_time() - cpu, 2), "wall": round(time.perf_counter() - wall, 2)}


def peak_mib() -> int:
    """The most memory this process has held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (
        1024 if sys.platform == "linux" else 1 << 20
    )


def products(network: Network, n_users: int) -> None:
    """Every score, and nothing made of it."""
    scored = network.table().scored[1:]
    query = torch.randn(BATCH_USERS, scored.shape[1])
    size = TILE_SCORES["cpu"] // BATCH_USERS
    for first in range(0, n_users, BATCH_USERS):
        part = query[: min(BATCH_USERS, n_users - first)]
        for tile in scored.split(size):
            torch.mm(part, tile.T)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    n, u, rng = args.items, args.users, np.random.default_rng(0)
    users = GatedUserModel(UsersConfig(n_layers=2, n_heads=2), args.width)
    source = Ids(n, args.width, torch.ones(n + 1, dtype=torch.bool))
    network = Network(source, HLLM(users, make_scorer(ScorerConfig()))).eval()
    starts = np.arange(u) * EVENTS
    tokens = rng.integers(1, n + 1, u * EVENTS).astype(np.int32)
    targets = rng.integers(1, n + 1, u)
    queries = Queries(np.arange(u), targets, starts, starts + EVENTS, tokens, np.zeros(len(tokens), np.int64))
    options = RankOptions(np.arange(1, n + 1))
    rows = {
        "table": seconds(network.table),
        "target_ranks": seconds(lambda: target_ranks(network, queries, options)),
        "top_k": seconds(lambda: top_k(network, queries, options, args.k)),
    }
    memory = peak_mib()
    rows["floor"] = seconds(lambda: products(network, u))
    for name, row in rows.items():
        print(f"{name}: {row['cpu']:.1f} s of CPU, {row['wall']:.1f} s")
    print(f"most memory: {memory:,} MiB")
    if args.out is not None:
        settings = {name: value for name, value in vars(args).items() if name != "out"}
        document = {
            "date": datetime.date.today().isoformat(),
            "hardware": hardware.describe_hardware(),
            "versions": hardware.describe_versions(),
            "settings": settings,
            "seconds": rows,
            "peak_mib": memory,
        }
        write_json(args.out, document)


if __name__ == "__main__":
    told(main)
