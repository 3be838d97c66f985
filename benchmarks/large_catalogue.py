"""Training over a large catalogue: seconds of a step, an epoch with validation, and the process's memory.

    python benchmarks/large_catalogue.py [--items 100000 1000000] [--out benchmarks/results/large_catalogue.json]

Synthetic: 200,000 users with 1.2 M events in which every item occurs, made into a dataset folder as a user would
(`Dataset.from_tables`, `save`). Preset `sasrec` with `loss=sampled`, width 64, two layers. Each part runs in a process
of its own, whose peak memory is read at its end; CPU seconds are those of the whole process, wherever the machine is
busy with other things.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from told import told

from hllm import Dataset, hardware
from hllm.artifacts import write_json
from hllm.config import load_config
from hllm.runs import train as runs
from hllm.train.trainer import Trainer

GIB = 1 << 30
SETTINGS = {
    "loss": "sampled",
    "label_smoothing": 0.0,
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 2,
}


def peak_gib() -> float:
    """The most memory this process had so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 2)


def prepare(folder: Path, n_items: int, n_users: int, n_events: int) -> dict[str, float]:
    """Make the dataset: every item once, the rest by a power law, dealt to users at random."""
    rng = np.random.default_rng(0)
    rest = (n_items * rng.power(0.3, n_events - n_items)).astype(np.int64)
    items = rng.permutation(np.concatenate((np.arange(n_items), rest)))
    # Six events a user on average, never fewer than four: two to train on, one each to validate and test.
    users = np.concatenate(
        (np.repeat(np.arange(n_users), 4), rng.integers(0, n_users, n_events - 4 * n_users))
    )
    times = 1_600_000_000 + rng.integers(0, 10**8, n_events)
    start, cpu = time.perf_counter(), time.process_time()
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times})
    data = Dataset.from_tables(frame, name=f"synthetic-{n_items}", time_unit="s")
    built = time.perf_counter()
    data.save(folder)
    end = time.perf_counter()
    return {
        "from_tables_seconds": round(built - start, 2),
        "save_seconds": round(end - built, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_gib": peak_gib(),
    }


class Clock:
    """Wraps a trainer's methods to see where an epoch's time goes."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []  # (wall, CPU) between the ends of two steps
        self.spent: dict[str, list[float]] = {}
        self.last = (0.0, 0.0)

    def watch(self, owner: type, name: str) -> None:
        """Time every call of `owner.name`."""
        method, spent = getattr(owner, name), self.spent.setdefault(name, [0.0, 0.0])

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = now()
            result = method(*args, **kwargs)
            for i, (a, b) in enumerate(zip(begun, now(), strict=True)):
                spent[i] += b - a
            self.last = now()
            return result

        setattr(owner, name, timed)

    def watch_steps(self) -> None:
        """Time from one step's end to the next: batch, view, step, and what the loop does in between."""
        method = Trainer._step

        def timed(trainer: Trainer, *args: Any) -> Any:
            result = method(trainer, *args)
            end = now()
            if trainer.state.step_in_epoch:
                self.steps.append((end[0] - self.last[0], end[1] - self.last[1]))
            self.last = end
            return result

        Trainer._step = timed  # type: ignore[method-assign]


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def train(folder: Path, epochs: int, valid_users: int, threads: int) -> dict[str, Any]:
    """Train as `hllm train` does, without the evaluation afterwards."""
    torch.set_num_threads(threads)
    clock = Clock()
    clock.watch_steps()
    for name in ("_validate", "save", "_load_best"):
        clock.watch(Trainer, name)
    settings = {**SETTINGS, "epochs": epochs, "valid_users": valid_users}
    config = load_config("sasrec", overrides=settings)
    begun = now()
    data = Dataset.load(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as run:
        _, result = runs.train_network(data, config, None, torch.device("cpu"), Path(run) / "run", show=False)
    end = now()
    wall, cpu = zip(*clock.steps, strict=True)
    return {
        "steps": len(clock.steps),
        "step_cpu_seconds": round(statistics.median(cpu), 4),
        "step_wall_seconds": round(statistics.median(wall), 4),
        "epoch_seconds": round(result.seconds / epochs, 2),
        "whole_seconds": round(end[0] - begun[0], 2),
        "whole_cpu_seconds": round(end[1] - begun[1], 2),
        "spent": {name: [round(x, 2) for x in values] for name, values in clock.spent.items()},
        "peak_gib": peak_gib(),
        "best": [result.best_epoch, round(result.best_value, 6)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--events", type=int, default=1_200_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--valid-users", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where the datasets go, and are found again")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    document: dict[str, Any] = {
        "benchmark": "large_catalogue",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "threads": args.threads,
        "users": args.users,
        "events": args.events,
        "valid_users": args.valid_users,
        "settings": SETTINGS,
        "items": {},
    }
    for n_items in args.items:
        folder, row = work / f"items-{n_items}", document["items"].setdefault(str(n_items), {})
        jobs: list[tuple[str, Any, tuple[Any, ...]]] = [
            ("train", train, (folder, args.epochs, args.valid_users, args.threads))
        ]
        if not folder.exists():
            jobs.insert(0, ("prepare", prepare, (folder, n_items, args.users, args.events)))
        for name, job, given in jobs:
            with get_context("spawn").Pool(1) as pool:
                row[name] = pool.apply(job, given)
            print(f"{n_items:>9,} {name}: {row[name]}", flush=True)
        if args.out is not None:
            write_json(args.out, document)


if __name__ == "__main__":
    told(main)
