"""A small world and a small model that trains on it in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.models.hllm import Network
from hllm.runs.train import train_network
from hllm.testing import world
from hllm.train import trainer
from hllm.train.trainer import FitResult

SETTINGS = {
    "d_model": 16, "n_layers": 1, "n_heads": 2, "max_distance": 8, "max_len": 8, "epochs": 4,
    "batch_tokens": 80, "learning_rate": 5e-3, "dropout": 0.2,
}  # fmt: skip


@pytest.fixture(scope="session")
def data() -> Dataset:
    return world(n_users=40, n_items=30)


@pytest.fixture
def make_config() -> Callable[..., Config]:
    def make(**settings: Any) -> Config:
        return load_config("sasrec", overrides={**SETTINGS, **settings})

    return make


@pytest.fixture
def train(data: Dataset, make_config: Callable[..., Config]) -> Callable[..., tuple[Network, FitResult]]:
    """Train the small model on the small world; settings by name."""

    def run(
        folder: Path | None = None, resume: bool = False, embeddings: Any = None, **settings: Any
    ) -> tuple[Network, FitResult]:
        device = torch.device("cpu")
        return train_network(data, make_config(**settings), embeddings, device, folder, resume, show=False)

    return run


@pytest.fixture
def saved_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step instead of every 15 seconds."""
    monkeypatch.setattr(trainer.Trainer, "_due", lambda self: True)
