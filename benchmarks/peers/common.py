"""What the programs of this folder share. They run in the environment of another library, where there is no hllm."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

K = 10


@dataclass
class Events:
    """Histories without the test event, user by user in order of time; see `events_of` in benchmarks/field.py."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    held: np.ndarray  # the event for validation
    test: np.ndarray  # users to recommend for
    n_items: int
    folder: Path
    seconds: float  # of training, at most
    device: str


Result = tuple[Iterable[tuple[int, int, int]], dict[str, Any]]  # (user, item, rank), and what to report


def main(models: dict[str, Callable[[Events], Result]]) -> None:
    """Train the model that the command line names, write `recs.csv` and `report.json`."""
    name, folder, seconds, device = sys.argv[1:5]
    stored = np.load(Path(folder) / "events.npz")
    arrays = {key: stored[key] for key in ("users", "items", "times", "held", "test")}
    events = Events(
        **arrays, n_items=int(stored["n_items"]), folder=Path(folder), seconds=float(seconds), device=device
    )
    started = time.monotonic()
    rows, report = models[name](events)
    with (events.folder / "recs.csv").open("w") as file:
        file.write("user_id,item_id,rank\n")
        for user, item, rank in rows:
            file.write(f"{user},{item},{rank}\n")
    report.setdefault("fit_seconds", round(time.monotonic() - started, 1))
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        report["gpu_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    (events.folder / "report.json").write_text(json.dumps(report))
