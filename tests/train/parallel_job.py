"""What one process of `test_parallel.py` does: trainings, one after the other, and what came of each.

python parallel_job.py OUT CASE...   a CASE is JSON: preset, settings, users, out; rank 0 writes OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from hllm import ranks
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.evaluate.evaluation import evaluate
from hllm.items.embed import embed
from hllm.pipeline import Recommender, prepared
from hllm.runs.settle import settled
from hllm.runs.train import make_trainer
from hllm.testing import world
from hllm.train.checkpoint import trained

CPU = torch.device("cpu")


def dataset(users: int) -> Dataset:
    return world(n_users=users, n_items=30)


def first_gradients(data: Dataset, case: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of the first step, by name: AdamW's first moments, of which they are a tenth."""
    config = settled(data, load_config(case["preset"], overrides=case["settings"]))
    trainer = make_trainer(data, data.train_histories(), config, prepared(data, config), CPU, None, False)
    trainer.network.train()
    optimizer, batch = trainer.optimizer, next(iter(trainer.loader.epoch(0)))
    loss = trainer._step(batch, 0.0).reshape(1)
    trainer.ranks.average([loss])
    found = {}
    for name, p in trained(trainer.network, optimizer).items():
        state = optimizer.state_of(p)
        if "exp_avg" in state:
            found[name] = (state["exp_avg"] / 0.1).flatten().tolist()
    return float(loss) * trainer.ranks.world, found


def whole_training(data: Dataset, case: dict[str, Any]) -> dict[str, Any]:
    """Train, evaluate and recommend: everything that a run gives."""
    config = load_config(case["preset"], overrides=case["settings"])
    recommender = Recommender(config).fit(
        data, out=case.get("out"), device="cpu", progress=False, resume=case.get("resume", False)
    )
    assert recommender.network is not None
    metrics = evaluate(
        recommender.network, data, "test", (1, 10), max_len=8, ranks=ranks.now(), batch_users=2
    )
    weights = {n: t.flatten().tolist() for n, t in recommender.network.named_parameters()}
    return {
        "metrics": metrics.values,
        "intervals": metrics.intervals,
        "n_users": metrics.protocol.n_users,
        "ranks": metrics.ranks.tolist(),
        "weights": weights,
        "best": recommender.record.best,
    }


def embedding(case: dict[str, Any]) -> dict[str, Any]:
    """The store of a dataset on disk."""
    made = embed(
        Dataset.load(Path(case["embed"])), case["item_llm"], device="cpu", batch_size=4, progress=False
    )
    return {"vectors": made.vectors.tolist()}


def run(case: dict[str, Any]) -> dict[str, Any]:
    if "embed" in case:
        return embedding(case)
    data = dataset(case["users"])
    if "resume" in case:
        return whole_training(data, case)
    loss, gradients = first_gradients(data, case)
    return {"loss": loss, "gradients": gradients, **whole_training(data, case)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks.join("cpu")
    results = [run(json.loads(case)) for case in sys.argv[2:]]
    if ranks.now().first:
        Path(sys.argv[1]).write_text(json.dumps(results))
    ranks.leave()
