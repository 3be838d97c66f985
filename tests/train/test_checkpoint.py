"""A checkpoint brings everything back, and a half-written one never takes an old one's place."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from hllm.artifacts import read_tensors
from hllm.errors import ArtifactError
from hllm.train.checkpoint import (
    Progress,
    load_checkpoint,
    save_checkpoint,
)
from hllm.train.config import TrainingConfig
from hllm.train.files import best_path, drop_other_bests, read_identity
from hllm.train.optim import Optimizer, WeightAverage

IDENTITY = {"config": {"seed": 1}, "dataset": "f00d", "embeddings": None}


class State:
    """A network after a few steps, with all that belongs to it."""

    def __init__(self, steps: int = 3, width: int = 4) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(width, 5), nn.Dropout(0.5), nn.Linear(5, 1))
        self.optimizer = Optimizer(self.network, TrainingConfig(learning_rate=0.1))
        self.average = WeightAverage(self.optimizer.parameters, 0.9)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.network(torch.randn(6, self.network[0].in_features)).square().mean().backward()
        self.optimizer.step(1.0)
        self.average.update()

    def save(self, path: Path, progress: Progress) -> None:
        save_checkpoint(path, progress, self.network, self.optimizer, self.average, IDENTITY)


def test_going_on_gives_the_same_bits(tmp_path: Path) -> None:
    first = State()
    progress = Progress(2, 1, 3, 4.5, 0.75, 1, 0.25, 1, 0, False, [{"epoch": 1, "loss": 3.0}])
    first.save(tmp_path / "last.safetensors", progress)
    first.step()
    other = State(steps=0)
    loaded = load_checkpoint(tmp_path / "last.safetensors", other.network, other.optimizer, other.average)
    assert loaded == progress
    other.step()  # the same dropout mask and the same noise: the random state came back too
    for mine, theirs in zip(other.network.parameters(), first.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for key, value in first.optimizer.dense.state[theirs].items():
            assert torch.equal(other.optimizer.dense.state[mine][key], value), key
    assert all(torch.equal(a, b) for a, b in zip(other.average.average, first.average.average, strict=True))
    assert other.average.steps == first.average.steps
    assert read_identity(tmp_path / "last.safetensors") == IDENTITY


def test_before_the_first_step_there_is_no_optimizer_state(tmp_path: Path) -> None:
    State(steps=0).save(tmp_path / "last.safetensors", Progress())
    other = State(steps=0)
    progress = load_checkpoint(tmp_path / "last.safetensors", other.network, other.optimizer, None)
    assert progress == Progress() and not other.optimizer.dense.state


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = State()
    path = tmp_path / "last.safetensors"
    state.save(path, Progress(epoch=1))
    before = path.read_bytes()

    def half(tensors: object, file: str, metadata: object) -> None:
        Path(file).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(ArtifactError, match="No space left"):
        state.save(path, Progress(epoch=2))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    State().save(tmp_path / "last.safetensors", Progress())
    other = State(steps=0, width=7)
    with pytest.raises(ArtifactError, match="belongs to another model"):
        load_checkpoint(tmp_path / "last.safetensors", other.network, other.optimizer, other.average)


def test_what_is_frozen_is_not_saved(tmp_path: Path) -> None:
    """Nor is anything held twice: weights, two moments and an average of what is trained."""
    state = State()
    state.network.register_buffer("table", torch.zeros(1000, 10))
    state.network[0].weight.requires_grad_(False)
    state.optimizer, state.average = Optimizer(state.network, TrainingConfig()), None
    state.save(tmp_path / "last.safetensors", Progress())
    tensors, _ = read_tensors(tmp_path / "last.safetensors")
    assert sorted(name for name in tensors if name.startswith("model.")) == [
        "model.0.bias",
        "model.2.bias",
        "model.2.weight",
    ]


def test_the_identity_is_read_without_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    State().save(tmp_path / "last.safetensors", Progress())
    monkeypatch.setattr("hllm.artifacts.read_tensors", None)
    monkeypatch.setattr("hllm.train.checkpoint.read_tensors", None)
    assert read_identity(tmp_path / "last.safetensors") == IDENTITY


def test_only_the_best_that_is_named_stays(tmp_path: Path) -> None:
    for epoch in (2, 5, 7):
        best_path(tmp_path, epoch).touch()
    drop_other_bests(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["best-5.safetensors"]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes(b"\x00" * 30)
    with pytest.raises(ArtifactError, match=r"last\.safetensors"):
        read_identity(tmp_path / "last.safetensors")
