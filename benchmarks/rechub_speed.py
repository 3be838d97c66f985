"""Training speed beside torch-rechub's own code, in one process, on the same data.

    pip install torch-rechub
    hllm embed DATASET --pooling last
    python benchmarks/rechub_speed.py DATASET

Each side trains its own model of the same shape (frozen item vectors of one item LLM, 2 layers, dropout,
Adam) for `--batches` batches after a few to warm up, with its own loader and step, the two in turns.
torch-rechub makes one padded window per target, so that an epoch over all targets is as many windows;
hllm's preset `rechub` lays histories end to end, and its epoch goes over them `passes` times. Both are
extrapolated to an epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step_time import step, trainer_of
from told import told

from hllm import hardware
from hllm.artifacts import write_json
from hllm.compat.rechub.windows import StoredWindows, leave_last_out
from hllm.config import Config, load_config
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Dataset
from hllm.items.embed import load_embeddings
from hllm.items.embeddings import ItemEmbeddings
from hllm.settings import heads_of

WARM_UP = 5
COLUMNS = ("seq_tokens", "seq_positions", "targets", "seq_time_diffs")


Timed = Iterator[tuple[float, int]]  # seconds of one batch, and the tokens or windows in it


def our_batches(data: Dataset, embeddings: ItemEmbeddings, config: Config, device: str) -> Timed:
    """Batches of the packed engine without end; tokens count."""
    assert isinstance(config.training.max_len, int)
    trainer = trainer_of(data, config, embeddings, torch.device(device))
    drawn = itertools.chain.from_iterable(trainer.loader.epoch(e) for e in itertools.count())
    while True:
        started = time.perf_counter()
        batch = next(drawn)  # making the batch is part of the work
        float(step(trainer, batch))  # reading the loss waits for the device, as the other side does
        yield time.perf_counter() - started, batch.n_tokens


def our_loader(data: Dataset, config: Config, device: str) -> TrainLoader:
    assert isinstance(config.training.max_len, int)
    return TrainLoader(
        data.train_histories(), config.training.max_len, config.training.batch_tokens, config.training.seed, device,
        config.training.windows, config.training.passes,
    )  # fmt: skip


def their_batches(
    data: Dataset, embeddings: ItemEmbeddings, config: Config, device: str, batch_size: int, n_batches: int
) -> Timed:
    """`n_batches` of torch-rechub's HLLMModel, SequenceDataGenerator and SeqTrainer; windows count."""
    windows = their_windows(data, config)
    # What is timed and no more: a random sample, as the shuffling loader takes it.
    chosen = np.random.default_rng(0).permutation(len(windows))[: n_batches * batch_size]
    loader, _, trainer = their_training(windows.rows(chosen), embeddings, config, device, batch_size)
    drawn = iter(loader)
    while True:
        started = time.perf_counter()
        batch = next(drawn, None)
        if batch is None:
            return
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar each
            trainer.train_one_epoch([batch])  # reads the loss, too
        yield time.perf_counter() - started, len(batch[0])


def their_training(
    rows: dict[str, np.ndarray], embeddings: ItemEmbeddings, config: Config, device: str, batch_size: int
) -> tuple[Any, Any, Any]:
    """torch-rechub's loader of the windows `rows`, its HLLMModel, and its SeqTrainer for it."""
    from torch_rechub.models.generative.hllm import HLLMModel
    from torch_rechub.trainers import SeqTrainer
    from torch_rechub.utils.data import SequenceDataGenerator

    loader = SequenceDataGenerator(*(rows[name] for name in COLUMNS)).generate_dataloader(batch_size)[0]
    model = HLLMModel(*model_shape(embeddings, config), config.users.dropout)
    trainer = SeqTrainer(
        model,
        optimizer_params={"lr": config.training.learning_rate, "weight_decay": config.training.weight_decay},
        device=device,
        loss_type="nce",
        loss_params={"temperature": 1.0, "ignore_index": 0},
    )
    return loader, model, trainer


def model_shape(embeddings: ItemEmbeddings, config: Config) -> tuple[Any, ...]:
    """HLLMModel's arguments before dropout: item vectors, vocabulary, width, heads, layers, window."""
    vectors = torch.from_numpy(np.array(embeddings.vectors))
    n, width = vectors.shape
    return (
        vectors,
        n,
        width,
        heads_of(width, config.users.n_heads),
        config.users.n_layers,
        config.training.max_len,
    )


def their_windows(data: Dataset, config: Config) -> StoredWindows:
    assert isinstance(config.training.max_len, int)
    tokens, times, offsets = (np.asarray(a) for a in (data.tokens, data.times, data.offsets))
    return leave_last_out(tokens, times, offsets, config.training.max_len)["train"]


def alternate(sides: dict[str, Timed], batches: int) -> dict[str, dict[str, float]]:
    """Totals of `batches` batches a side, taken in turns: whatever else the machine does hits both alike."""
    totals = {name: {"batches": batches, "seconds": 0.0, "units": 0} for name in sides}
    for n in range(WARM_UP + batches):
        for name, side in sides.items():
            seconds, units = next(side)
            if n >= WARM_UP:
                totals[name]["seconds"] += seconds
                totals[name]["units"] += units
        if n % 20 == 0:
            print(f"batch {n} of {WARM_UP + batches}", file=sys.stderr, flush=True)
    return totals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--item-llm", default="smollm2-135m")
    parser.add_argument("--max-len", type=int, default=200)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64, help="windows in a batch of torch-rechub")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    try:
        import torch_rechub  # noqa: F401
    except ImportError:
        print("skipped: torch-rechub is not installed here; type: pip install torch-rechub", file=sys.stderr)
        return
    data = Dataset.load(args.dataset)
    embeddings = load_embeddings(data, args.item_llm, pooling="last")
    config = load_config("rechub", overrides={"max_len": args.max_len})
    document: dict[str, Any] = {
        "benchmark": "rechub_speed",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": {**hardware.describe_versions(), "torch-rechub": torch_rechub_version()},
        "threads": torch.get_num_threads(),
        "dataset": {name: data.meta[name] for name in ("name", "fingerprint", "n_users", "n_candidates")},
        "targets_per_epoch": int(np.maximum(np.diff(data.train_histories().offsets) - 1, 0).sum()),
        "max_len": args.max_len,
        "width": embeddings.vectors.shape[1],
    }
    sides = {
        "hllm": our_batches(data, embeddings, config, args.device),
        "torch_rechub": their_batches(
            data, embeddings, config, args.device, args.batch_size, WARM_UP + args.batches
        ),
    }
    for name, row in alternate(sides, args.batches).items():
        unit = "tokens" if name == "hllm" else "windows"
        document[name] = {"batches": args.batches, "seconds": row["seconds"], unit: row["units"]}
        document[name][f"{unit}_per_second"] = row["units"] / row["seconds"]
    windows = our_loader(data, config, args.device).plan(0).windows
    ours, theirs = document["hllm"], document["torch_rechub"]
    ours |= {"batch_tokens": config.training.batch_tokens, "passes": config.training.passes}
    ours["epoch_seconds"] = int((windows.lengths - 1).sum()) / ours["tokens_per_second"]
    theirs["batch_size"] = args.batch_size
    theirs["epoch_seconds"] = len(their_windows(data, config)) / theirs["windows_per_second"]
    document["times_faster"] = theirs["epoch_seconds"] / ours["epoch_seconds"]
    print("hllm:", ours)
    print("torch-rechub:", theirs)
    print(
        f"an epoch over the same {document['targets_per_epoch']:,} targets: {ours['epoch_seconds']:,.0f} s against "
        f"{theirs['epoch_seconds']:,.0f} s, {document['times_faster']:.1f} times faster"
    )
    if args.out is not None:
        write_json(args.out, document)


def torch_rechub_version() -> str:
    from importlib.metadata import version

    return version("torch-rechub")


if __name__ == "__main__":
    told(main)
