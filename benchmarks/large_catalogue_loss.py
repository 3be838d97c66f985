"""Seconds and memory of losses over a large catalogue, forward and backward.

    python benchmarks/large_catalogue_loss.py --device cuda --out benchmarks/results/large_catalogue_loss_h100.json
    python benchmarks/large_catalogue_loss.py --device cuda --items 10000000 --tokens 4096 --widths 256 --table bf16 \
        --ways tiles sampled
    python benchmarks/large_catalogue_loss.py --device cpu --items 20000 --tokens 512

`tiles` cuts positions and items; `chunks of positions` sets as many positions against all items at once
as the budget of logits allows (33 at 1 M items, 3 at 10 M), which was the only way up to commit 39b754e. `sampled`
is the sampled softmax with --negatives drawn items. With --table bf16 items and their gradient are held in bfloat16.
On a GPU products take bf16 operands, as in training. Peak memory is that of the whole process on a CPU, and
what torch allocated on a GPU; `least` is what queries, items and their gradients alone take.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import time
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from told import told

from hllm import hardware
from hllm.artifacts import write_json
from hllm.losses.cross_entropy import CHUNK_LOGITS, cross_entropy, tile_shape
from hllm.losses.sampled import sampled_softmax

WAYS = ("tiles", "chunks of positions", "sampled")
TABLES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GIB = 1 << 30


def measure(way: str, width: int, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds and peak memory of forward and backward; in a process of its own, for the peak's sake."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    queries = torch.randn(args.tokens, width, device=device).div_(width**0.5).requires_grad_()
    items = torch.randn(args.items, width, device=device, dtype=TABLES[args.table]).requires_grad_()
    targets = torch.randint(args.items, (args.tokens,), device=device)
    columns = torch.randint(args.items, (args.negatives,), device=device)
    chunk = None if way != "chunks of positions" else max(1, CHUNK_LOGITS // args.items)
    bf16 = device.type == "cuda"
    seconds = []
    for _ in range(args.repeats + 1):  # the first warms up
        queries.grad = items.grad = None
        synchronise(device)
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            if way == "sampled":
                loss = sampled_softmax(queries, items, targets, columns)
            else:
                loss = cross_entropy(queries, items, targets, args.label_smoothing, chunk)
        loss.backward()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    seconds = sorted(seconds[1:])
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    least = 2 * width * (items.element_size() * args.items + 4 * args.tokens)
    shape = tile_shape(args.tokens, args.items, device.type) if chunk is None else (chunk, args.items)
    if way == "sampled":
        shape = args.tokens, args.negatives
    return {
        "seconds": seconds[len(seconds) // 2],
        "peak_gib": peak / GIB,
        "least_gib": least / GIB,
        "tile": shape,
        "loss": loss.item(),
        "norm_of_gradients": [float(x.grad.norm()) for x in (queries, items) if x.grad is not None],
        "bf16": bf16,
    }


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=8_192)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:2])
    parser.add_argument("--table", choices=TABLES, default="fp32")
    parser.add_argument("--negatives", type=int, default=512, help="of the sampled softmax")
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.device = str(hardware.pick_device(args.device))
    document: dict[str, Any] = {
        "benchmark": "large_catalogue_loss",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "threads": torch.get_num_threads(),
        "items": args.items,
        "tokens": args.tokens,
        "label_smoothing": args.label_smoothing,
        "table": args.table,
        "negatives": args.negatives,
        "widths": {},
    }
    print(f"{'width':>5}  {'way':<20}{'tile':>20}{'seconds':>10}{'peak GiB':>10}{'least':>8}")
    for width in args.widths:
        rows = document["widths"][str(width)] = {}
        for way in args.ways:
            with get_context("spawn").Pool(1) as pool:
                row = rows[way] = pool.apply(measure, (way, width, args))
            tile = "{:,} x {:,}".format(*row["tile"])
            figures = f"{row['seconds']:>10.3f}{row['peak_gib']:>10.2f}{row['least_gib']:>8.2f}"
            print(f"{width:>5}  {way:<20}{tile:>20}{figures}", flush=True)
            if args.out is not None:
                write_json(args.out, document)


if __name__ == "__main__":
    told(main)
