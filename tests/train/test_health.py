"""Runs that lead nowhere stop, with the reason, and leave nothing that counts as good (case D14)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from hllm.artifacts import read_tensors
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, TrainingError
from hllm.items.embed import embed
from hllm.packing import Batch
from hllm.pipeline import Recommender
from hllm.runs.folder import run_state
from hllm.train.health import (
    check_loss,
    check_vectors,
    distinct_users,
    effective_rank,
    mean_cosine,
    spaced_rows,
)
from hllm.train.trainer import Trainer


def test_mean_cosine_is_over_all_pairs() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(x, dim=1)
    cosines = [float(unit[i] @ unit[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(x) == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    assert mean_cosine(torch.zeros(4, 3)) == 1.0
    assert mean_cosine(torch.ones(1, 3)) == 1.0


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training(loss: float) -> None:
    with pytest.raises(TrainingError, match=rf"loss is {loss} at step 17.*learning_rate"):
        check_loss(loss, 17)
    check_loss(3.0, 17)


def test_vectors_of_one_direction_stop_training() -> None:
    torch.manual_seed(0)
    one_way = torch.ones(50, 8) * (0.5 + torch.rand(50, 1)) + 1e-4 * torch.randn(50, 8)
    with pytest.raises(TrainingError, match=r"user vectors have collapsed to one direction in epoch 3"):
        check_vectors(one_way, "user", 3)
    with pytest.raises(TrainingError, match="item vectors are not finite in epoch 2"):
        check_vectors(torch.tensor([[1.0, math.nan], [0.0, 1.0]]), "item", 2)
    check_vectors(torch.randn(50, 8), "user", 3)
    check_vectors(torch.ones(1, 8), "user", 3)  # one vector has nothing to collapse towards


def test_a_large_catalogue_is_sampled_evenly() -> None:
    rows = torch.arange(10_000)
    assert torch.equal(spaced_rows(rows, 20_000), rows)
    assert len(spaced_rows(rows, 100)) == 100
    assert spaced_rows(rows, 100)[-1] == 9900


def test_case_d14_collapsed_items(tmp_path: Path, saved_every_step: None) -> None:
    """512 items with the same text and no ids of their own: the loss stays at ln 512; training says why."""
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(512) for _ in range(3)])
    events = pl.DataFrame(
        {"user_id": np.repeat(np.arange(48), 32), "item_id": order, "timestamp": np.arange(len(order))}
    )
    items = pl.DataFrame({"item_id": np.arange(512), "title": "All the same"})
    data = Dataset.from_tables(events, items, time_unit="index")
    embed(data, "random", progress=False)
    settings = {"item_llm": "random", "id_embedding": False, "d_model": 16, "n_layers": 1, "epochs": 3}
    settings |= {"batch_tokens": 256, "eval_every": 1}
    recommender = Recommender(load_config("demo", overrides=settings))
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match="item vectors have collapsed to one direction in epoch 1"):
        recommender.fit(data, out=run, device="cpu", progress=False)
    _, metadata = read_tensors(run / "checkpoints" / "last.safetensors")
    progress = metadata["progress"]
    n_items = int((data.train_counts() > 0).sum())
    assert progress["loss_sum"] / progress["step_in_epoch"] == pytest.approx(math.log(n_items), abs=1e-3)
    assert progress["best_epoch"] is None and progress["best_value"] is None
    assert not list((run / "checkpoints").glob("best-*"))
    assert run_state(run) == "unfinished"
    with pytest.raises(ArtifactError, match="not finished"):
        Recommender.from_pretrained(run)


def test_collapsed_users_are_found_in_training(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hllm.models.hllm.Network.query", lambda self, batch: torch.ones(batch.n_users, 16))
    with pytest.raises(TrainingError, match="user vectors have collapsed"):
        train()


@pytest.mark.parametrize("epochs", [1, 2])
def test_collapsed_users_are_never_the_best_however_short_the_training(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    monkeypatch.setattr("hllm.models.hllm.Network.query", lambda self, batch: torch.ones(batch.n_users, 16))
    with pytest.raises(
        TrainingError, match=f"user vectors have collapsed to one direction in epoch {epochs}"
    ):
        train(epochs=epochs)


def test_weights_of_a_flat_validation_are_no_candidates(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat in the first two epochs, as a young model may be: the best is one of the others."""
    monkeypatch.setattr(Trainer, "_check_health", flat_until(3))
    _, result = train(epochs=4)
    assert result.best_epoch >= 3


def test_patience_does_not_count_before_there_is_a_best(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_check_health", flat_until(3))
    _, result = train(epochs=4, patience=1)
    assert result.best_epoch >= 3


def flat_until(first: int) -> Callable[[Trainer, int, Any], dict[str, float]]:
    """A health check that finds user vectors flat before epoch `first`."""

    def check(self: Trainer, epoch: int, plan: Any) -> dict[str, float]:
        self.state.flat_validations = self.state.flat_validations + 1 if epoch < first else 0
        return {}

    return check


def test_nan_stops_training_and_is_never_the_best(
    train: Callable[..., Any], tmp_path: Path, saved_every_step: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight becomes NaN at the third step, in the first epoch: the next loss says so."""
    step = Trainer._step

    def broken(self: Trainer, *args: Any) -> torch.Tensor:
        loss = step(self, *args)
        if self.state.step == 2:
            with torch.no_grad():
                self.network.get_parameter("model.user_model.norm.weight")[0] = math.nan
        return loss

    monkeypatch.setattr(Trainer, "_step", broken)
    run = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d+: .*learning_rate"):
        train(run)
    assert not (run / "config.json").exists() and not (run / "model.safetensors").exists()
    _, metadata = read_tensors(run / "checkpoints" / "last.safetensors")
    assert metadata["progress"]["step"] <= 3 and metadata["progress"]["best_epoch"] is None
    assert not list((run / "checkpoints").glob("best-*"))


@pytest.mark.parametrize("kind", ["item", "user"])
def test_nan_weights_are_not_validated(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The loss of the last step was still a number, the weights after it are not."""
    finish = Trainer._finish_epoch

    def broken(self: Trainer, *args: Any) -> None:
        with torch.no_grad():
            network = self.network
            ids = network.get_parameter("source.parts.ids.weight")
            weight = ids[3] if kind == "item" else network.get_parameter("model.user_model.norm.weight")
            weight[0] = math.nan
        finish(self, *args)

    monkeypatch.setattr(Trainer, "_finish_epoch", broken)
    with pytest.raises(TrainingError, match=f"{kind} vectors are not finite in epoch 1"):
        train(ema_decay=0.0)


def test_effective_rank() -> None:
    """One direction beside the mean has rank 1; d equal ones have rank d."""
    line = torch.tensor([[1.0, 1.0, 0, 0], [1.0, -1.0, 0, 0]]).repeat(8, 1)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-6)
    sphere = torch.cat((torch.eye(4), -torch.eye(4)))
    assert effective_rank(sphere) == pytest.approx(4.0, abs=1e-6)
    assert effective_rank(torch.ones(5, 4)) == pytest.approx(1.0, abs=0.1)


def test_users_who_met_the_same_are_no_collapse(tmp_path: Path) -> None:
    """Forty who took the same two things in turn: their vectors are one, and training goes on."""
    rows = [(user, step % 2, step) for user in range(40) for step in range(8)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = Dataset.from_tables(frame, time_unit="index")
    recommender = Recommender.from_preset("sasrec", d_model=8, n_heads=1, n_layers=1, epochs=2)
    recommender.fit(data, out=tmp_path / "run", device="cpu", progress=False)
    assert run_state(tmp_path / "run") == "finished"


def test_distinct_users() -> None:
    tokens = torch.tensor([1, 2, 3, 1, 2, 3, 1, 2, 1, 2, 3])
    offsets = torch.tensor([0, 3, 6, 8, 11], dtype=torch.int32)
    batch = Batch(torch.arange(4), tokens, tokens, tokens, offsets)
    assert distinct_users(batch) == [0, 2]


def test_a_few_users_may_be_alike() -> None:
    """Five people who bought the same things are no collapse; fifty are."""
    alike = torch.ones(50, 8)
    check_vectors(alike[:5], "user", 1)
    with pytest.raises(TrainingError, match="user vectors have collapsed"):
        check_vectors(alike, "user", 1)
    with pytest.raises(TrainingError, match="item vectors have collapsed"):
        check_vectors(alike[:5], "item", 1)
