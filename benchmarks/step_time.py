"""Milliseconds of a training step, launched kernel by kernel and replayed as a CUDA graph.

    python benchmarks/step_time.py DATASET [--preset hllm-lite] [--set max_len=200] [--steps 200]

DATASET is a prepared folder with the embeddings that the preset asks for. Needs a GPU for the comparison; on a
CPU the plain step alone is timed.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import torch

from hllm import Dataset, hardware
from hllm.config import load_config, parse_assignments
from hllm.data.batches.training import TrainLoader
from hllm.evaluate.evaluation import parse_max_len
from hllm.items.embed import load_embeddings
from hllm.runs.build import build_network
from hllm.train.optim import make_optimizer
from hllm.train.step import GraphedStep, Step, make_step

WARMUP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--preset", default="hllm-lite")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    data, device = Dataset.load(args.dataset), hardware.pick_device(args.device)
    config = load_config(args.preset, overrides=parse_assignments(args.set))
    found = (
        load_embeddings(data, config.items.item_llm, config.items.pooling) if config.items.item_llm else None
    )
    network = build_network(data, config, found).to(device).train()
    training = config.training
    loader = TrainLoader(
        data.train_histories(), parse_max_len(training.max_len), training.batch_tokens, training.seed, device
    )
    step = make_step(network, make_optimizer(network, config), config, loader)
    print(
        hardware.describe_hardware()["gpus"] or hardware.describe_hardware()["cpu"],
        "torch",
        torch.__version__,
    )
    if isinstance(step, GraphedStep):
        print(f"kernel by kernel: {milliseconds(step.step, loader, args.steps):.2f} ms a step")
        print(f"CUDA graph: {milliseconds(step, loader, args.steps):.2f} ms a step")
    else:
        print(f"{milliseconds(step, loader, args.steps):.2f} ms a step")


def milliseconds(step: Step, loader: TrainLoader, n: int) -> float:
    """Mean over `n` steps after a warm-up, batches assembled as in training."""
    batches = (batch for epoch in range(1_000_000) for batch in loader.epoch(epoch))
    for batch in islice(batches, WARMUP):
        step(batch)
    _wait(loader)
    start = time.perf_counter()
    for batch in islice(batches, n):
        step(batch)
    _wait(loader)
    return (time.perf_counter() - start) / n * 1e3


def _wait(loader: TrainLoader) -> None:
    if loader.device.type == "cuda":
        torch.cuda.synchronize(loader.device)


if __name__ == "__main__":
    main()
