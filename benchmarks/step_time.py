"""Milliseconds of a training step, launched kernel by kernel and replayed as a CUDA graph.

    python benchmarks/step_time.py DATASET [--preset hllm-lite] [--set max_len=200] [--steps 200] [--out FILE]

DATASET is a prepared folder with the embeddings that the preset asks for. Needs a GPU for the comparison; on a
CPU the plain step alone is timed.
"""

from __future__ import annotations

import argparse
import datetime
import time
from itertools import islice
from pathlib import Path

import torch
from told import told
from torch import Tensor

from hllm import Dataset, hardware
from hllm.artifacts import write_json
from hllm.config import Config, load_config, parse_assignments
from hllm.items.embed import load_embeddings
from hllm.items.embeddings import ItemEmbeddings
from hllm.packing import Batch
from hllm.runs.train import make_trainer
from hllm.train.trainer import Trainer

WARMUP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--preset", default="hllm-lite")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    data, device = Dataset.load(args.dataset), hardware.pick_device(args.device)
    config = load_config(args.preset, overrides=parse_assignments(args.set))
    items = config.items
    found = load_embeddings(data, items.item_llm, items.pooling) if items.item_llm else None
    ways = {"kernel by kernel": False, "CUDA graph": True} if device.type == "cuda" else {"a step": False}
    found_ms = {}
    for name, capture in ways.items():
        trainer = trainer_of(data, config.model_copy(update={"capture": capture}), found, device)
        found_ms[name] = milliseconds(trainer, args.steps)
        print(f"{name}: {found_ms[name]:.2f} ms", flush=True)
    if args.out is not None:
        write_json(
            args.out,
            {
                "date": datetime.date.today().isoformat(),
                "hardware": hardware.describe_hardware(),
                "versions": hardware.describe_versions(),
                "command": hardware.command_line(),
                "dataset": data.meta["name"],
                "milliseconds": found_ms,
            },
        )


def trainer_of(
    data: Dataset, config: Config, embeddings: ItemEmbeddings | None, device: torch.device
) -> Trainer:
    """A fresh trainer, in training mode."""
    trainer = make_trainer(data, data.train_histories(), config, embeddings, device, None, False)
    trainer.network.train()
    return trainer


def milliseconds(trainer: Trainer, n: int) -> float:
    """Mean over `n` steps after a warm-up, batches and views made as in training."""
    batches = (batch for epoch in range(1_000_000) for batch in trainer.loader.epoch(epoch))
    for batch in islice(batches, WARMUP):
        step(trainer, batch)
    wait(trainer.device)
    start = time.perf_counter()
    for batch in islice(batches, n):
        step(trainer, batch)
    wait(trainer.device)
    return (time.perf_counter() - start) / n * 1e3


def step(trainer: Trainer, batch: Batch) -> Tensor:
    """One step as in training, less the learning rate and the weight average; the loss, which is not waited for."""
    if trainer.shape is not None:
        batch = trainer.shape.pad(batch) or batch
    return trainer.step(batch.to(trainer.device), trainer.views.view(batch, (0, 0)))


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    told(main)
