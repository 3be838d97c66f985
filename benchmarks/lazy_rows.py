"""Milliseconds of updating the rows of an embedding that a step needs, by the size of the table.

    python benchmarks/lazy_rows.py [--device cuda] [--rows 10000 100000 1000000] [--leased 8704]

`lazy` is a lease and a step of `LazyRows`; `dense` is torch's fused AdamW and the weight average on the
whole table.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from told import told
from torch import nn

from hllm import hardware
from hllm.artifacts import write_json
from hllm.train.lazy_rows import LazyRows
from hllm.train.optim import WeightAverage

WARMUP = 3


def milliseconds(step: Callable[[], None], n: int, device: torch.device) -> float:
    """Median over `n` calls after a warm-up."""
    times = []
    for _ in range(n + WARMUP):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times[WARMUP:])[n // 2]


def measure(n: int, args: argparse.Namespace) -> dict[str, float]:
    """Both ways on a table of `n` rows."""
    device = torch.device(args.device)
    table = nn.Embedding(n, args.width, device=device)
    gradient = torch.randn(args.leased, args.width, device=device)
    draws = [
        torch.randperm(n, device=device)[: args.leased].sort().values for _ in range(args.steps + WARMUP)
    ]
    rows = iter(draws)
    lazy = LazyRows(table.weight, weight_decay=0.1, ema_decay=0.999)

    def lazy_step() -> None:
        leased = next(rows)
        lazy.lease(leased)
        lazy.step(leased, gradient[: len(leased)], 1e-3)

    optimizer = torch.optim.AdamW(table.parameters(), betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    average = WeightAverage(list(table.parameters()), 0.999)
    table.weight.grad = torch.zeros_like(table.weight)

    def dense_step() -> None:
        optimizer.step()
        average.update()

    return {
        "lazy": milliseconds(lazy_step, args.steps, device),
        "dense": milliseconds(dense_step, args.steps, device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--leased", type=int, default=8_704, help="rows a step needs")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.device = str(hardware.pick_device(args.device))
    document: dict[str, Any] = {
        "benchmark": "lazy_rows",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "threads": torch.get_num_threads(),
        "leased": args.leased,
        "width": args.width,
        "milliseconds": {},
    }
    print(f"{'rows':>10}{'lazy ms':>10}{'dense ms':>10}")
    for n in args.rows:
        row = document["milliseconds"][str(n)] = measure(n, args)
        print(f"{n:>10,}{row['lazy']:>10.2f}{row['dense']:>10.2f}", flush=True)
        if args.out is not None:
            write_json(args.out, document)


if __name__ == "__main__":
    told(main)
