"""Milliseconds of one `Recommender.recommend(history=...)` on a CPU, and how much of them is arithmetic.

    python benchmarks/recommend_latency.py [--items 1000 100000] [--width 128] [--threads 1] [--out FILE.json]

Each call is timed whole: ids looked up, history encoded, all candidates scored, the best k found, the frame made. It
is held against the same forward, a bare product with the table and `torch.topk`, in the same process by turns.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from told import told

from hllm import hardware
from hllm.artifacts import write_json
from hllm.config import load_config
from hllm.data.batches.queries import history_queries, query_batch
from hllm.data.dataset import Dataset
from hllm.models.hllm import Network
from hllm.pipeline import Recommender
from hllm.runs.build import build_network


def catalogue(n_items: int) -> Dataset:
    """A dataset of `n_items` items, each with an event, in histories of ten."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"user_id": np.arange(n_items) // 10, "item_id": rng.permutation(n_items)})
    return Dataset.from_tables(frame.with_columns(timestamp=pl.int_range(pl.len())), time_unit="index")


def bare(network: Network, tokens: list[int], n_items: int, k: int) -> torch.Tensor:
    """The arithmetic alone."""
    with torch.no_grad():
        batch = query_batch(history_queries([tokens]), slice(0, 1), None)
        scores = network.query(batch) @ network.table().scored[1 : n_items + 1].T
        scores[0, torch.tensor(tokens) - 1] = -torch.inf
        return scores.topk(k).indices


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def measure(n_items: int, args: argparse.Namespace) -> dict[str, Any]:
    """p50 and p99 of both, and the ratio of the medians."""
    data = catalogue(n_items)
    config = load_config("sasrec", overrides={"d_model": args.width, "n_layers": args.layers, "n_heads": 4})
    network = build_network(data, config, None).eval()
    recommender = Recommender(config, network, data)
    rng, whole, alone = np.random.default_rng(1), [], []
    for call in range(args.calls + args.warmup):
        tokens = rng.integers(1, n_items + 1, args.events).tolist()
        history = [[data.item_ids[token - 1] for token in tokens]]
        times = (
            milliseconds(lambda h=history: recommender.recommend(history=h, k=args.k)),
            milliseconds(lambda t=tokens: bare(network, t, n_items, args.k)),
        )
        if call >= args.warmup:
            whole.append(times[0])
            alone.append(times[1])
    row: dict[str, Any] = {"items": n_items}
    for name, values in (("recommend", whole), ("arithmetic", alone)):
        row |= {f"{name}_p{p}_ms": round(float(np.percentile(values, p)), 3) for p in (50, 99)}
    return row | {"ratio": round(row["recommend_p50_ms"] / row["arithmetic_p50_ms"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = [measure(n, args) for n in args.items]
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    if args.out is not None:
        settings = {name: value for name, value in vars(args).items() if name not in ("items", "out")}
        write_json(
            args.out,
            {
                "date": datetime.date.today().isoformat(),
                "hardware": hardware.describe_hardware(),
                "versions": hardware.describe_versions(),
                "settings": settings,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    told(main)
