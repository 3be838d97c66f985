"""Users a second of `hllm recommend --out FOLDER`, and whether memory grows with their number.

    python benchmarks/batch_recommend.py [--users 1000000] [--items 100000] [--device cuda] [--out FILE.json]

Synthetic: every item occurs, the rest of the events follow a power law. A run with untrained weights (training changes
no second of this) is written as `hllm train` writes it; then lists are written for a tenth of the users, and for all
of them, by the call behind the command, and the memory of process and GPU is read after each.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from told import told

from hllm import Dataset, Recommender, hardware
from hllm.artifacts import write_json
from hllm.batch import recommend_parts
from hllm.config import load_config
from hllm.recommend.whom import Whom
from hllm.runs.build import build_network
from hllm.runs.record import new_record

GIB = 1 << 30


def write_run(folder: Path, args: argparse.Namespace) -> None:
    """A run of `args.users` users with `args.events` events each on average."""
    rng, n = np.random.default_rng(0), args.users * args.events
    rest = (args.items * rng.power(0.5, n - args.items)).astype(np.int64)
    items = np.concatenate((np.arange(args.items), rest))
    # Two for everybody, the rest at random: some users have many events, most have few.
    users = np.concatenate(
        (np.repeat(np.arange(args.users), 2), rng.integers(0, args.users, n - 2 * args.users))
    )
    frame = pl.DataFrame(
        {"user_id": rng.permutation(users), "item_id": items, "timestamp": np.arange(n) + 10**9}
    )
    data = Dataset.from_tables(frame, name="synthetic", time_unit="s")
    settings = {"d_model": args.width, "n_layers": args.layers, "max_len": args.max_len}
    config = load_config("sasrec", overrides=settings)
    network = build_network(data, config, None).eval()
    Recommender(config, network, data, new_record(data, config, None)).save_pretrained(folder)


def measure(run: Path, out: Path, args: argparse.Namespace, n_users: int) -> dict[str, Any]:
    """Seconds and memory of lists for the first `n_users` users, loading the run included."""
    options = {
        "k": args.k, "keep_seen": False, "exclude": [], "candidates": "interacted", "unknown": "skip", "only": None,
        "columns": [],
    }  # fmt: skip
    whom = Whom(None if n_users == args.users else list(range(n_users)))
    start, cpu = time.perf_counter(), time.process_time()
    rows, n, _ = recommend_parts(run, out, whom, options, {}, devices=args.device.split(","), progress=False)
    seconds = time.perf_counter() - start
    row = {
        "users": n,
        "rows": rows,
        "seconds": round(seconds, 2),
        "users_a_second": round(n / seconds),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2),
        "gpu_peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2)
        if torch.cuda.is_available()
        else None,
    }
    print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max-len", type=int, default=200)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        start = time.perf_counter()
        # In a process of its own, so that the memory it takes is not counted.
        from multiprocessing import get_context

        writer = get_context("spawn").Process(target=write_run, args=(run, args))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit("the run could not be written")
        print(f"run written in {time.perf_counter() - start:.1f} s", flush=True)
        rows = [measure(run, Path(folder) / str(n), args, n) for n in (args.users // 10, args.users)]
    if args.out is not None:
        settings = {name: value for name, value in vars(args).items() if name != "out"}
        write_json(
            args.out,
            {
                "date": datetime.date.today().isoformat(),
                "hardware": hardware.describe_hardware(),
                "versions": hardware.describe_versions(),
                "command": "python benchmarks/batch_recommend.py",
                "settings": settings,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    told(main)
