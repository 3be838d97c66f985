"""An approximate index of item vectors against exact search: recall of the first ten, and queries a second.

    python benchmarks/index.py [--items 1000000] [--width 256] [--threads 2] [--effort 64 256 768]
        [--graph FILE] [--out FILE.json]

Synthetic vectors of length one: a cluster for 500 items, whose centres and spread have components that fall as
1 / sqrt(i), as the spectra of item vectors do; a query is an item's vector with noise of half its length. With --graph
the graph is kept, and an interrupted building goes on. A query is searched on its own, on either side, in one process
by turns: exactly, by the product with every vector and `torch.topk`, and by `hllm index`'s graph.
"""

from __future__ import annotations

import argparse
import datetime
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from told import told

from hllm import hardware
from hllm.artifacts import atomic, write_json
from hllm.recommend.index import BLOCK, EFFORT, REFINE, ItemIndex, build_graph, compare


def vectors(n: int, width: int, n_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Item vectors float32 (n, width) and queries (n_queries, width)."""
    rng = np.random.default_rng(0)
    scale = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    centres = rng.standard_normal((max(100, n // 500), width), dtype=np.float32) * scale
    items = rng.standard_normal((n, width), dtype=np.float32)
    items *= 0.7 * scale
    items += centres[rng.integers(0, len(centres), n)]
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    noise = rng.standard_normal((n_queries, width), dtype=np.float32) * scale
    queries = items[rng.integers(0, n, n_queries)] + 0.5 * noise / np.linalg.norm(scale)
    return items, queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--effort", type=int, nargs="+", default=[64, 256, EFFORT])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--graph", type=Path)
    parser.add_argument("--build-only", type=int, default=0, help="Items to add, and stop.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    items, queries = vectors(args.items, args.width, args.queries)
    tokens, graph = np.arange(1, args.items + 1), None
    if args.graph is not None and args.graph.exists():
        from usearch.index import Index

        graph = Index.restore(str(args.graph))
    start, before = time.perf_counter(), 0 if graph is None else len(graph)
    if args.build_only:
        stop = min(args.items, before + args.build_only)
        graph = build_graph(items[:stop], tokens[:stop], graph=graph)
    else:
        graph = build_graph(items, tokens, graph=graph)
    seconds = time.perf_counter() - start
    print(f"{len(graph) - before:,} of {args.items:,} items added in {seconds:.1f} s", flush=True)
    if args.graph is not None:
        with atomic(args.graph) as temporary:
            graph.save(str(temporary))
    if args.build_only:
        return
    scored = torch.from_numpy(np.concatenate((np.zeros((1, args.width), np.float32), items)))
    del items
    rows = []
    for effort in args.effort:
        found = compare(ItemIndex(graph, scored, effort), torch.from_numpy(queries), tokens, 10, args.rounds)
        row = {"effort": effort, **asdict(found), "times": round(found.approximate / found.exact, 1)}
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        rows.append(row)
    if args.out is not None:
        settings = {
            name: value for name, value in vars(args).items() if name not in ("out", "graph", "build_only")
        }
        write_json(
            args.out,
            {
                "date": datetime.date.today().isoformat(),
                "hardware": hardware.describe_hardware(),
                "versions": hardware.describe_versions(),
                "command": hardware.command_line(),
                "settings": settings | {"refine": REFINE, "block": BLOCK},
                "items_added_by_this_call": args.items - before,
                "build_seconds_of_this_call": round(seconds, 1),
                "rows": rows,
            },
        )


if __name__ == "__main__":
    told(main)
