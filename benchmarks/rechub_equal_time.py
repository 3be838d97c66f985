"""Quality after an equal time of training, beside torch-rechub's own code, on one device.

    pip install torch-rechub
    hllm embed DATASET && hllm embed DATASET --pooling last
    python benchmarks/rechub_equal_time.py DATASET --device cuda --seconds 100

Three sides, each on the clock for `--seconds` of training: torch-rechub's HLLMModel with its loader and
SeqTrainer; hllm's preset `rechub`, the same model on packed histories; and `hllm-lite`, the preset for
quality, whose whole schedule of `--epochs` epochs, validation included, must fit into the time. The first
two are scored `--marks` times on the way, which is off the clock. Test events of hllm's protocol, seen
items kept, as torch-rechub ranks, and filtered.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rechub_presets import TwinRanker
from rechub_speed import model_shape, their_training, their_windows, torch_rechub_version
from step_time import step, trainer_of
from told import told

from hllm import hardware
from hllm.artifacts import write_json
from hllm.compat.rechub import HLLMModel
from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.evaluate.evaluation import evaluate
from hllm.items.embed import load_embeddings
from hllm.runs.train import train_network
from hllm.train.optim import evaluation_weights

METRICS = ("ndcg@10", "hr@10")
STRIDE = 20  # batches between two looks at the clock

# Trains STRIDE batches and counts targets; gives the ranker so far.
Side = tuple[Callable[[], int], Callable[[], Any]]


def packed(data: Dataset, config: Config, item_llm: str, device: str) -> Side:
    """The preset on the packed engine, its rate constant: the clock, not a schedule, ends it. Counts tokens."""
    embeddings = load_embeddings(data, item_llm, pooling="last")
    trainer = trainer_of(data, config, embeddings, torch.device(device))
    network, average = trainer.network, trainer.average
    assert average is not None
    averaged = copy.deepcopy(network)
    drawn = itertools.chain.from_iterable(trainer.loader.epoch(epoch) for epoch in itertools.count())

    def train() -> int:
        network.train()
        batches = list(itertools.islice(drawn, STRIDE))
        for batch in batches:
            loss = step(trainer, batch)
            average.update()
        float(loss)  # waits for the device
        return sum(batch.n_tokens for batch in batches)

    def ranker() -> Any:
        with evaluation_weights(average, trainer.optimizer):
            averaged.load_state_dict(network.state_dict())
        return averaged.eval()

    return train, ranker


def torch_rechub(data: Dataset, config: Config, item_llm: str, device: str, batch_size: int) -> Side:
    """torch-rechub's model, loader and trainer; counts windows."""
    embeddings = load_embeddings(data, item_llm, pooling="last")
    rows = their_windows(data, config).arrays()
    loader, model, trainer = their_training(rows, embeddings, config, device, batch_size)
    ranked = HLLMModel(*model_shape(embeddings, config)).to(device)  # equal, and ranks packed queries
    drawn: Iterator[Any] = itertools.chain.from_iterable(loader for _ in itertools.count())

    def train() -> int:
        batches = list(itertools.islice(drawn, STRIDE))
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar each
            trainer.train_one_epoch(batches)
        return sum(len(batch[0]) for batch in batches)

    def ranker() -> TwinRanker:
        ranked.load_state_dict(model.state_dict())
        return TwinRanker(ranked)

    return train, ranker


def score(ranker: Any, data: Dataset, max_len: int, split: str) -> dict[str, dict[str, float]]:
    found = {}
    for seen in ("kept", "filtered"):
        metrics = evaluate(
            ranker, data, split, (10,), keep_seen=seen == "kept", max_len=max_len, bootstrap=0, details=False
        )
        found[f"seen {seen}"] = {name: metrics[name] for name in METRICS}
    return found


def on_the_clock(
    name: str, side: Side, data: Dataset, max_len: int, seconds: float, marks: int
) -> list[dict[str, Any]]:
    """Train for `seconds`, scoring after each of `marks` equal parts of them."""
    train, ranker = side
    curve: list[dict[str, Any]] = []
    spent, targets = 0.0, 0
    while spent < seconds:
        started = time.perf_counter()
        targets += train()
        spent += time.perf_counter() - started
        if spent >= seconds * (len(curve) + 1) / marks:
            row = {"seconds": spent, "targets": targets}
            for split in ("validation", "test"):
                row[split] = score(ranker(), data, max_len, split)
            curve.append(row)
            print(f"{name}: {json.dumps(row)}", flush=True)
    return curve


def hllm_lite(data: Dataset, item_llm: str, epochs: int, device: str) -> dict[str, Any]:
    """The whole schedule of the preset for quality."""
    config = load_config("hllm-lite", overrides={"epochs": epochs, "eval_every": 2})
    embeddings = load_embeddings(data, item_llm, pooling=config.items.pooling)
    network, fit = train_network(data, config, embeddings, torch.device(device), show=False)
    assert isinstance(config.training.max_len, int)
    row = {
        "seconds": fit.seconds,
        "epochs": epochs,
        "test": score(network, data, config.training.max_len, "test"),
    }
    print(f"hllm-lite: {json.dumps(row)}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--item-llm", default="smollm2-135m")
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--marks", type=int, default=5)
    parser.add_argument(
        "--sides", nargs="+", choices=("torch_rechub", "rechub"), default=["torch_rechub", "rechub"]
    )
    parser.add_argument("--epochs", type=int, default=40, help="of hllm-lite; 0 leaves it out")
    parser.add_argument("--batch-size", type=int, default=512, help="windows in a batch of torch-rechub")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="targets in a batch of preset rechub")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    try:
        version = torch_rechub_version()
    except ImportError:
        print("skipped: torch-rechub is not installed here; type: pip install torch-rechub", file=sys.stderr)
        return
    data = Dataset.load(args.dataset)
    config = load_config("rechub", overrides={"batch_tokens": args.batch_tokens})
    document: dict[str, Any] = {
        "benchmark": "rechub_equal_time",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": {**hardware.describe_versions(), "torch-rechub": version},
        "dataset": {name: data.meta[name] for name in ("name", "fingerprint", "n_users", "n_candidates")},
        "seconds": args.seconds,
        "batch_tokens": args.batch_tokens,
        "batch_size": args.batch_size,
    }
    assert isinstance(config.training.max_len, int)
    sides: dict[str, Callable[[], Side]] = {
        "torch_rechub": lambda: torch_rechub(data, config, args.item_llm, args.device, args.batch_size),
        "rechub": lambda: packed(data, config, args.item_llm, args.device),
    }
    for name in args.sides:
        document[name] = on_the_clock(
            name, sides[name](), data, config.training.max_len, args.seconds, args.marks
        )
        if args.out is not None:
            write_json(args.out, document)
    if args.epochs:
        document["hllm-lite"] = hllm_lite(data, args.item_llm, args.epochs, args.device)
    if args.out is not None:
        write_json(args.out, document)


if __name__ == "__main__":
    told(main)
