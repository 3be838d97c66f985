"""What each training objective gives, in quality and in seconds.

    hllm embed DATASET
    python benchmarks/losses.py DATASET --preset demo
    python benchmarks/losses.py DATASET --preset hllm-lite --device cuda --set '{"epochs": 20}'

One row a loss: metrics on the test events (seen items filtered) at the best validation epoch, seconds of
training alone and milliseconds a step. `nce` is torch-rechub's loss of that name, a softmax over every
item: the same as cross entropy. `in_batch` takes the targets of other users of the batch as negatives,
all of them and 512 of them, with and without the correction for popularity. All without label smoothing,
which negatives do not have; the preset's own cross entropy comes first.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_time import step, trainer_of
from told import told

from hllm import hardware
from hllm.artifacts import write_json
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.evaluate.evaluation import evaluate
from hllm.items.embed import load_embeddings
from hllm.runs.train import train_network

LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy, smoothed": {},
    "cross_entropy": {"label_smoothing": 0},
    "nce": {"loss": "nce", "label_smoothing": 0},
    "in_batch": {"loss": "in_batch", "label_smoothing": 0},
    "in_batch, no logq": {"loss": "in_batch", "label_smoothing": 0, "logq": False},
    "in_batch, 512": {"loss": "in_batch", "label_smoothing": 0, "n_negatives": 512},
    "sampled, 512": {"loss": "sampled", "label_smoothing": 0, "n_negatives": 512},
}
METRICS = ("ndcg@10", "hr@10")


def step_milliseconds(data: Dataset, config: Any, embeddings: Any, device: str, steps: int = 30) -> float:
    """Median time of one training step, forward to optimiser."""
    trainer = trainer_of(data, config, embeddings, torch.device(device))
    batches = [batch for epoch in range(8) for batch in trainer.loader.epoch(epoch)][: steps + 6]
    times = []
    for batch in batches:
        started = time.perf_counter()
        float(step(trainer, batch))  # reading the loss waits for the device
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times[6:]))


def measure(data: Dataset, embeddings: Any, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Quality and seconds of one loss, over all seeds."""
    values: dict[str, list[float]] = {metric: [] for metric in METRICS}
    seconds, epochs = [], []
    for seed in range(args.seeds):
        settings = {**LOSSES[name], "seed": seed, **json.loads(args.set)}
        config = load_config(args.preset, overrides=settings)
        network, fit = train_network(data, config, embeddings, torch.device(args.device), show=False)
        found = evaluate(
            network, data, "test", (10,), max_len=config.training.max_len, bootstrap=0, details=False
        )
        for metric in METRICS:
            values[metric].append(found[metric])
        seconds.append(fit.seconds)
        epochs.append(fit.best_epoch)
    row: dict[str, Any] = {metric: float(np.mean(values[metric])) for metric in METRICS}
    if args.seeds > 1:
        row["ndcg@10_sd_over_seeds"] = float(np.std(values["ndcg@10"], ddof=1))
    row |= {
        "seconds": float(np.mean(seconds)),
        "step_ms": step_milliseconds(data, config, embeddings, args.device),
        "best_epochs": epochs,
        "settings": LOSSES[name],
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--item-llm", default="smollm2-135m")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", default="{}", help="settings for every loss, as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data = Dataset.load(args.dataset)
    embeddings = load_embeddings(data, args.item_llm, pooling=load_config(args.preset).items.pooling)
    document: dict[str, Any] = {
        "benchmark": "losses",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "threads": torch.get_num_threads(),
        "dataset": {name: data.meta[name] for name in ("name", "fingerprint", "n_users", "n_candidates")},
        "preset": args.preset,
        "set": json.loads(args.set),
        "seeds": args.seeds,
        "losses": {},
    }
    print(f"{'loss':<26}{'NDCG@10':>9}{'HR@10':>9}{'seconds':>9}{'ms/step':>9}")
    for name in args.losses:
        row = document["losses"][name] = measure(data, embeddings, name, args)
        print(
            f"{name:<26}{row['ndcg@10']:>9.4f}{row['hr@10']:>9.4f}{row['seconds']:>9.1f}{row['step_ms']:>9.1f}",
            flush=True,
        )
        if args.out is not None:
            write_json(args.out, document)


if __name__ == "__main__":
    told(main)
