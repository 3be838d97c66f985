"""Bytes of a checkpoint and of the best weights, the seconds that writing them takes, and their share of the time.

    python benchmarks/checkpoint_size.py [--items 200000] [--width 256] [--out benchmarks/results/checkpoint_size.json]

A trainer of preset `hllm-lite` over random text vectors takes three steps, and saves twice: once with fresh best
weights, as after a validation that found better ones. `share` is what the cadence makes of it, with a save as costly
as the dearer one every time: seconds of a save over those between the starts of two.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from told import told

from hllm import Dataset, hardware
from hllm.artifacts import write_json
from hllm.config import load_config
from hllm.items.embeddings import ItemEmbeddings
from hllm.runs.train import make_trainer
from hllm.train.trainer import CHECKPOINT_SECONDS, Trainer

WAYS = {
    "text and ID, lazy": ("lazy", True),
    "text and ID, dense": ("dense", True),
    "text only": (None, False),
}


def catalogue(n_items: int, d_text: int) -> tuple[Dataset, ItemEmbeddings]:
    """Every item in four histories of four; random text vectors."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(n_items) for _ in range(4)])
    users = np.arange(len(items)) // 4
    frame = pl.DataFrame({"user_id": users, "item_id": items, "timestamp": np.arange(len(items))})
    data = Dataset.from_tables(frame, name="synthetic", time_unit="index")
    vectors = rng.standard_normal((data.n_catalogue + 1, d_text), dtype=np.float32)
    has_text = np.arange(data.n_catalogue + 1) > 0
    return data, ItemEmbeddings(vectors, has_text, {"key": "random"})


def measure(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Three steps and two saves."""
    begun = trainer._save_seconds
    trainer.network.train()
    for batch, _ in zip(trainer.loader.epoch(0), range(3), strict=False):
        trainer._step(batch, 1e-3)
    seconds = []
    for epoch in (1, None):
        if epoch is not None:
            trainer.state.best_epoch, trainer.best = epoch, trainer._kept_weights()
        start = time.perf_counter()
        trainer.save()
        seconds.append(time.perf_counter() - start)
    sizes = {
        path.name.partition("-")[0].partition(".")[0]: path.stat().st_size for path in folder.rglob("*.safe*")
    }
    dearest = max(seconds)
    wait = max(CHECKPOINT_SECONDS, dearest / trainer.runtime.checkpoint_share)
    return {
        "last_gb": sizes["last"] / 1e9,
        "best_gb": sizes["best"] / 1e9,
        "seconds_with_best": seconds[0],
        "seconds": seconds[1],
        "expected_seconds": begun,
        "share": dearest / (wait + dearest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--text-width", type=int, default=576)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    document: dict[str, Any] = {
        "benchmark": "checkpoint_size",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "items": args.items,
        "width": args.width,
        "ways": {},
    }
    data, embeddings = catalogue(args.items, args.text_width)
    print(f"{'':<22}{'last GB':>9}{'best GB':>9}{'seconds':>9}{'expected':>10}{'share':>8}")
    for way, (updates, ids) in WAYS.items():
        settings = {
            "loss": "sampled",
            "d_model": args.width,
            "batch_tokens": args.batch_tokens,
            "id_embedding": ids,
        }
        config = load_config("hllm-lite", overrides=settings | ({"id_updates": updates} if ids else {}))
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                data, data.train_histories(), config, embeddings, torch.device("cpu"), Path(folder), False
            )
            row = document["ways"][way] = measure(trainer, Path(folder))
        print(
            f"{way:<22}{row['last_gb']:>9.3f}{row['best_gb']:>9.3f}{row['seconds_with_best']:>9.2f}"
            f"{row['expected_seconds']:>10.2f}{row['share']:>8.2%}",
            flush=True,
        )
        if args.out is not None:
            write_json(args.out, document)


if __name__ == "__main__":
    told(main)
