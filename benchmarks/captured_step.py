"""The captured training step against the plain one, bit by bit, with every field of a batch set.

    python benchmarks/captured_step.py [DATASET] [--steps 12] [--out FILE]

On a prepared dataset, or a synthetic world (which takes polars), for every objective and view, with dense and lazily
updated ID rows, both train from the same start on the same padded batches under deterministic algorithms, without
dropout. Losses and all weights are compared after every step: "bits" where equal, else the largest difference. A user
model that reads features, query times and clock times makes sure that these reach the graph. Exits with 1 where
anything differs by more than rounding.
"""

from __future__ import annotations

import argparse
import datetime
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from told import told
from torch import Tensor, nn

from hllm import Dataset, hardware
from hllm.artifacts import write_json
from hllm.config import load_config
from hllm.packing import Batch, Rows, Signals
from hllm.runs.train import make_trainer
from hllm.testing import world
from hllm.train.trainer import Trainer

SMALL = {
    "d_model": 64,
    "n_heads": 2,
    "n_layers": 2,
    "max_len": 30,
    "dropout": 0.0,
    "mask_prob": 0.0,
    "epochs": 3,
}
NEGATIVES = {"label_smoothing": 0.0, "n_negatives": 32}
CASES: dict[str, dict[str, Any]] = {
    "cross entropy": {"batch_tokens": 400},
    "cross entropy, lazy rows": {"batch_tokens": 400, "id_updates": "lazy"},
    "sampled, whole catalogue": {"batch_tokens": 400, "loss": "sampled", **NEGATIVES},
    "sampled, the batch's items": {"batch_tokens": 60, "loss": "sampled", **NEGATIVES},
    "sampled, the batch's items, dense": {
        "batch_tokens": 60,
        "loss": "sampled",
        "id_updates": "dense",
        **NEGATIVES,
    },
    "in batch": {"batch_tokens": 400, "loss": "in_batch", "label_smoothing": 0.0},
}


class ReadsEverything(nn.Module):
    """Adds what a user model may read beside the items: features, times since, and the query's time."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.n_heads = inner.n_heads
        self.price = nn.Linear(3, width)
        self.when = nn.Linear(2, width)

    def forward(self, x: Tensor, rows: Rows, signals: Signals) -> Tensor:
        segments = rows.segments.flatten()[rows.slots]
        assert signals.query_time is not None
        query = torch.where(segments < 0, 0, signals.query_time[segments.clamp(min=0)])
        when = torch.stack((signals.times, query), dim=1).float() / 1e9
        return self.inner(x + self.price(signals.features["price"]) + self.when(when), rows, signals)


def full(batch: Batch, step: int) -> Batch:
    """The batch with every field set, from the step's number."""
    g = torch.Generator().manual_seed(step)
    ends = batch.offsets[1:].long() - 1
    price = torch.rand(batch.n_tokens, 3, generator=g).to(batch.tokens.device)
    age = torch.rand(batch.n_users, generator=g).to(batch.tokens.device)
    query = batch.times[ends] + 1000 * step
    return replace(batch, query_time=query, token_features={"price": price}, user_features={"age": age})


def trainer_of(data: Dataset, settings: dict[str, Any], device: torch.device, capture: bool) -> Trainer:
    config = load_config("sasrec", overrides={**SMALL, **settings, "capture": capture, "precision": "fp32"})
    trainer = make_trainer(data, data.train_histories(), config, None, device, None, False)
    return trainer


def wrapped(trainer: Trainer, device: torch.device) -> Trainer:
    """The trainer anew around a user model that reads everything."""
    torch.manual_seed(3)
    network = trainer.network
    network.model.user_model = ReadsEverything(network.model.user_model, network.source.width).to(device)
    return Trainer(
        network,
        trainer.loader,
        trainer.views,
        trainer.step.objective if hasattr(trainer.step, "objective") else trainer.step.step.objective,
        trainer.training,
        trainer.validate,
        device=device,
        runtime=trainer.runtime,
        lazy=bool(trainer.optimizer.lazy),
        show=False,
    )


def train(
    data: Dataset, settings: dict[str, Any], device: torch.device, capture: bool, steps: int
) -> list[dict[str, Tensor]]:
    """Loss and weights after each of `steps` steps."""
    trainer = wrapped(trainer_of(data, settings, device, capture), device)
    trainer.network.train()
    seen = []
    batches = (batch for epoch in range(100) for batch in trainer.loader.epoch(epoch))
    for number, batch in enumerate(islice(batches, steps)):
        batch = full(batch, number)
        # The plain step takes the same padded batch, so that the two do the same arithmetic.
        shape = trainer.shape or PLAIN_SHAPES.setdefault(str(settings), _shape(trainer))
        padded = shape.pad(batch)
        assert padded is not None
        trainer.optimizer.set_rate(1e-3 * (1 + number % 3))
        view = trainer.views.view(padded, (0, number))
        loss = trainer.step(padded.to(device), view)
        weights = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
        seen.append({"loss": loss.clone(), **weights})
    return seen


PLAIN_SHAPES: dict[str, Any] = {}


def _shape(trainer: Trainer) -> Any:
    from hllm.train.captured import PaddedShape

    return PaddedShape(trainer.loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True, warn_only=True)
    device = hardware.pick_device(args.device)
    data = Dataset.load(args.dataset) if args.dataset else world(n_users=300, n_items=900, length=25, seed=1)
    rows, bad = [], False
    for name, settings in CASES.items():
        plain = train(data, settings, device, False, args.steps)
        captured = train(data, settings, device, True, args.steps)
        worst = 0.0
        for mine, theirs in zip(captured, plain, strict=True):
            for key, value in theirs.items():
                worst = max(worst, float((mine[key] - value).abs().max()))
        moved = max(float((plain[-1][k] - plain[0][k]).abs().max()) for k in plain[0])
        rows.append({"case": name, "largest_difference": worst, "weights_moved_by": moved})
        print(
            f"{name}: {'bits' if worst == 0 else f'largest difference {worst:.2e}'} (weights moved by {moved:.2e})"
        )
        bad |= worst > 1e-5 or moved == 0
    if args.out is not None:
        write_json(
            args.out,
            {
                "date": datetime.date.today().isoformat(),
                "hardware": hardware.describe_hardware(),
                "versions": hardware.describe_versions(),
                "command": hardware.command_line(),
                "steps": args.steps,
                "rows": rows,
            },
        )
    raise SystemExit(int(bad))


if __name__ == "__main__":
    told(main)
