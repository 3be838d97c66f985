"""The loop: the best validation epoch is kept, patience ends it, and a break changes no bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from hllm import hardware
from hllm.artifacts import read_json, read_jsonl, read_tensors
from hllm.config import Config
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError
from hllm.items.source.ids import Ids
from hllm.losses.views import make_views
from hllm.models.hllm import Network
from hllm.pipeline import Recommender
from hllm.runs.folder import run_state
from hllm.runs.train import make_trainer
from hllm.testing import chain
from hllm.train import trainer as module
from hllm.train.files import best_path
from hllm.train.optim import Optimizer, learning_rate
from hllm.train.trainer import FitResult, Stopped, Trainer

Train = Callable[..., tuple[Network, FitResult]]


def norm_of(network: Network) -> torch.Tensor:
    return network.get_parameter("model.user_model.norm.weight")


@pytest.fixture
def scripted(data: Dataset, make_config: Callable[..., Config]) -> Callable[..., Any]:
    """A trainer whose validations give the values of a list, and what weights each of them saw."""

    def make(values: list[float], **settings: Any) -> tuple[Trainer, list[torch.Tensor]]:
        config = make_config(epochs=len(values), **settings)
        seen: list[torch.Tensor] = []

        def validate(network: Network) -> dict[str, float]:
            assert not network.training
            seen.append(norm_of(network).detach().clone())
            return {"ndcg@10": values[len(seen) - 1]}

        trainer = make_trainer(data, data.train_histories(), config, None, torch.device("cpu"), None, False)
        trainer.validate = validate
        return trainer, seen

    return make


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_best_epoch_is_kept_not_the_last(scripted: Callable[..., Any], ema_decay: float) -> None:
    trainer, seen = scripted([0.1, 0.3, 0.2, 0.25], ema_decay=ema_decay)
    result = trainer.fit()
    assert (result.best_epoch, result.best_value) == (2, 0.3)
    assert len(result.history) == len(seen) == 4
    assert torch.equal(norm_of(trainer.network), seen[1])
    assert not torch.equal(seen[1], seen[3])
    assert not trainer.network.training


def test_training_and_validation_run_with_few_threads(
    scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU: `few_threads` is told the trainer's device, and holds while it trains."""
    trainer, seen = scripted([0.2, 0.1])
    inside: list[torch.device] = []

    @contextmanager
    def few_threads(device: torch.device) -> Iterator[None]:
        assert not seen
        inside.append(device)
        yield
        assert len(seen) == 2

    monkeypatch.setattr(hardware, "few_threads", few_threads)
    trainer.fit()
    assert inside == [torch.device("cpu")]


def test_of_equal_epochs_the_first_is_kept(scripted: Callable[..., Any]) -> None:
    trainer, seen = scripted([0.2, 0.2, 0.2])
    assert trainer.fit().best_epoch == 1
    assert torch.equal(norm_of(trainer.network), seen[0])


def test_patience_counts_validations_without_a_better_one(scripted: Callable[..., Any]) -> None:
    trainer, seen = scripted([0.1, 0.3, 0.2, 0.31, 0.2, 0.3, 0.9], patience=2)
    result = trainer.fit()
    assert len(seen) == 6
    assert (result.best_epoch, [row["epoch"] for row in result.history]) == (4, [1, 2, 3, 4, 5, 6])


def test_validation_every_few_epochs_and_always_the_last(scripted: Callable[..., Any]) -> None:
    trainer, seen = scripted([0.1, 0.2, 0.3, 0.0, 0.0], eval_every=2)
    result = trainer.fit()
    assert len(seen) == 3
    assert ["ndcg@10" in row for row in result.history] == [False, True, False, True, True]
    assert result.best_epoch == 5


def test_rates_follow_the_schedule(scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = scripted([0.1, 0.2, 0.3])
    rates: list[float] = []
    monkeypatch.setattr(Optimizer, "set_rate", lambda optimizer, rate: rates.append(rate))
    history = trainer.fit().history
    expected = []
    for epoch in range(3):
        steps = len(trainer.loader.plan(epoch))
        expected += [learning_rate(trainer.training, (epoch + step / steps) / 3) for step in range(steps)]
        assert history[epoch]["step"] == len(expected)
        assert history[epoch]["learning_rate"] == pytest.approx(expected[-1], rel=1e-12)
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_logged_loss_is_the_mean_of_the_steps(
    scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOSS_CHECK_STEPS", 2)
    trainer, _ = scripted([0.1, 0.2])
    losses: list[list[float]] = [[], []]
    step = trainer.step

    def recorded(batch: Any, view: Any) -> torch.Tensor:
        loss = step(batch, view)
        losses[trainer.state.epoch].append(loss.item())
        return loss

    trainer.step = recorded
    history = trainer.fit().history
    assert len(losses[0]) > 2
    for row, values in zip(history, losses, strict=True):
        assert row["loss"] == sum(values) / len(values)


# ---------------------------------------------------------------------- stopping and going on


class Killed(BaseException):
    """What a kill -9 is to a process: nothing after it happens."""


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, how: str) -> None:
    """Break training just before optimiser step number `step`: killed, or asked to stop."""
    original = Trainer._step

    def breaking(self: Trainer, *args: Any) -> torch.Tensor:
        if self.state.step == step and how == "kill":
            raise Killed
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_step", breaking)
    if how == "ask":
        collect = Trainer._epoch

        def asking(self: Trainer, interruption: Any, bar: Any) -> None:
            class At:
                @property
                def requested(at) -> bool:
                    return self.state.step >= step

            collect(self, At(), bar)

        monkeypatch.setattr(Trainer, "_epoch", asking)


def outcome(folder: Path, trained: tuple[Network, FitResult]) -> dict[str, Any]:
    """All that must be the same: weights to the bit, history, where training stands."""
    network, result = trained
    _, metadata = read_tensors(folder / "checkpoints" / "last.safetensors")
    progress = {k: v for k, v in metadata["progress"].items() if k != "seconds"}
    state = {name: value.numpy().tobytes() for name, value in network.state_dict().items()}
    return {
        "weights": state,
        "history": result.history,
        "on disk": read_jsonl(folder / "history.jsonl"),
        "progress": progress,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mask_prob": 0.0, "ema_decay": 0.0, "optimizer": "adam"},
        {"loss": "sampled", "n_negatives": 8, "label_smoothing": 0.0},
        {
            "loss": "sampled",
            "n_negatives": 2,
            "label_smoothing": 0.0,
            "batch_tokens": 5,
            "max_len": 4,
            "epochs": 3,
        },
        {"id_updates": "lazy"},
        {"id_updates": "lazy", "ema_decay": 0.0},
    ],
    ids=["cross entropy", "adam", "sampled", "the batch's items", "lazy", "lazy without average"],
)
def test_case_d15_equal_seeds_and_a_break_after_epoch_2(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    saved_every_step: None,
) -> None:
    """Twice straight and once killed after epoch 2: same rates, losses and weights; every epoch listed once."""
    rates: list[float] = []
    original = Optimizer.set_rate
    monkeypatch.setattr(Optimizer, "set_rate", lambda o, rate: (rates.append(rate), original(o, rate))[1])
    runs, checkpoints = {}, recorded_checkpoints(monkeypatch)
    for name in ("first", "second"):
        rates.clear()
        checkpoints.clear()
        runs[name] = outcome(tmp_path / name, train(tmp_path / name, **settings)) | {"rates": list(rates)}
        runs[name]["checkpoints"] = dict(checkpoints)
    assert len(checkpoints) == runs["first"]["progress"]["step"] - 1
    assert [row["epoch"] for row in runs["first"]["on disk"]] == [1, 2, 3, 4][: settings.get("epochs")]
    rates.clear()
    checkpoints.clear()
    with monkeypatch.context() as patch:
        stop_at(patch, runs["first"]["history"][1]["step"], "kill")
        with pytest.raises(Killed):
            train(tmp_path / "third", **settings)
    assert [row["epoch"] for row in read_jsonl(tmp_path / "third" / "history.jsonl")] == [1, 2]
    # The rate of the step that was killed is set again.
    third = train(tmp_path / "third", resume=True, **settings)
    runs["third"] = outcome(tmp_path / "third", third) | {"rates": rates, "checkpoints": dict(checkpoints)}
    for name in ("second", "third"):
        for key, value in runs["first"].items():
            assert runs[name][key] == value, (name, key)


@pytest.mark.parametrize("small", [{}, {"batch_tokens": 5, "max_len": 4, "n_negatives": 2}])
def test_hard_negatives_survive_a_break_within_an_epoch(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved_every_step: None,
    small: dict[str, Any],
) -> None:
    """They are those of the weights at the epoch's start, which are gone by then."""
    settings = {
        "loss": "sampled",
        "negatives_by": "hard",
        "n_negatives": 8,
        "label_smoothing": 0.0,
        "epochs": 2,
    }
    settings |= small
    first = outcome(tmp_path / "first", train(tmp_path / "first", **settings))
    with monkeypatch.context() as patch:
        stop_at(patch, first["history"][0]["step"] + 2, "kill")
        with pytest.raises(Killed):
            train(tmp_path / "second", **settings)
    assert outcome(tmp_path / "second", train(tmp_path / "second", resume=True, **settings)) == first
    other = outcome(tmp_path / "other", train(tmp_path / "other", **settings | {"negatives_by": "counts"}))
    assert other["weights"] != first["weights"]


def recorded_checkpoints(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, bytes]]:
    """What the checkpoints hold that are written from now on, by step: all of the state that training goes on from."""
    found: dict[int, dict[str, bytes]] = {}
    save = module.save_checkpoint

    def recorded(path: Path, progress: Any, *args: Any) -> None:
        save(path, progress, *args)
        tensors, _ = read_tensors(path)
        assert progress.finished == (not tensors)  # of a finished training nothing goes on
        if tensors:
            found[progress.step] = {name: value.numpy().tobytes() for name, value in tensors.items()}

    monkeypatch.setattr(module, "save_checkpoint", recorded)
    return found


@pytest.mark.parametrize("how", ["kill", "ask"])
@pytest.mark.parametrize("windows", ["random", "pieces", "every"])
def test_a_break_at_any_step_changes_no_bit(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    windows: str,
    saved_every_step: None,
) -> None:
    """In the middle of an epoch, at its last step, after it, and several times in one run."""
    straight = outcome(tmp_path / "straight", train(tmp_path / "straight", windows=windows, epochs=2))
    epoch = straight["history"][0]["step"]
    total = straight["history"][1]["step"]
    assert epoch >= 3
    folder = tmp_path / "broken"
    for step in (1, 2, epoch - 1, epoch, epoch + 1, total - 1, *([total] if how == "ask" else [])):
        with monkeypatch.context() as patch:
            stop_at(patch, step, how)
            with pytest.raises((Killed, Stopped)):
                train(folder, resume=True, windows=windows, epochs=2)
        assert run_state(folder) == "unfinished"
    resumed = outcome(folder, train(folder, resume=True, windows=windows, epochs=2))
    for key, value in straight.items():
        assert resumed[key] == value, key


@pytest.mark.parametrize("id_updates", ["dense", "lazy"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_killed_between_the_best_weights_and_the_checkpoint(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved_every_step: None,
    id_updates: str,
    ema_decay: float,
) -> None:
    """After every validation once: the best file is there that no checkpoint names yet."""
    settings = {"loss": "sampled", "n_negatives": 2, "label_smoothing": 0.0, "batch_tokens": 5, "max_len": 4}
    settings |= {"id_updates": id_updates, "ema_decay": ema_decay, "epochs": 2, "valid_metric": "mrr@30"}
    straight = outcome(tmp_path / "straight", train(tmp_path / "straight", **settings))
    save, broken = module.save_checkpoint, 0

    def killed(path: Path, progress: Any, *args: Any) -> None:
        fresh = best_path(path.parent, progress.best_epoch or 0)
        if fresh.exists() and fresh not in seen:
            seen.add(fresh)
            raise Killed
        save(path, progress, *args)

    seen: set[Path] = set()
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_checkpoint", killed)
        for _ in range(3):
            try:
                train(tmp_path / "run", resume=True, **settings)
            except Killed:
                broken += 1
    assert broken >= 1
    resumed = train(tmp_path / "run", resume=True, **settings)
    assert outcome(tmp_path / "run", resumed) == straight


def test_the_best_weights_wait_for_a_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where validations find better weights often, writing them keeps to the checkpoints' share of the time."""
    written: list[str] = []
    write = module.write_tensors
    monkeypatch.setattr(
        module, "write_tensors", lambda path, *a: (written.append(path.name), write(path, *a))
    )
    _, result = train(tmp_path / "run", epochs=3)
    assert written == [f"best-{result.best_epoch}.safetensors"]


def test_the_first_checkpoint_waits_by_its_size(
    data: Dataset, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(
        data, data.train_histories(), make_config(), None, torch.device("cpu"), None, False
    )
    now = trainer._saved_at
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 16)
    assert trainer._due()
    trainer._save_seconds = 1.0  # of a share of 2%: one in 50 seconds
    assert not trainer._due()
    monkeypatch.setattr(module, "SAVE_RATE", 10_000)
    large = make_trainer(data, data.train_histories(), make_config(), None, torch.device("cpu"), None, False)
    assert large._save_seconds > 1


def test_training_leaves_nothing_of_the_optimiser_in_the_network(train: Train) -> None:
    network, _ = train(id_updates="lazy", epochs=1)
    ids = next(m for m in network.modules() if isinstance(m, Ids))
    assert ids.on_lease is None and ids.on_grad is None
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_dense_updates_move_rows_that_no_batch_holds(
    data: Dataset, make_config: Callable[..., Config]
) -> None:
    """With the batch's items and dense AdamW every row goes where it goes with the whole catalogue encoded."""
    settings = {
        "loss": "sampled",
        "n_negatives": 6,
        "label_smoothing": 0.0,
        "batch_tokens": 16,
        "dropout": 0.0,
    }
    config = make_config(**settings, mask_prob=0.0, id_updates="dense")
    weights = []
    for whole in (True, False):
        trainer = make_trainer(data, data.train_histories(), config, None, torch.device("cpu"), None, False)
        trainer.views = make_views(data.train_counts(), config.objective, 16, 0, whole=whole)
        ids = next(m for m in trainer.network.modules() if isinstance(m, Ids))
        moved = torch.zeros(len(ids.weight), dtype=torch.bool)
        trainer.network.train()
        for batch in islice(trainer.loader.epoch(0), 12):
            before, view = (
                ids.weight.detach().clone(),
                trainer.views.view(batch, (0, trainer.state.step_in_epoch)),
            )
            trainer._step(batch, 1e-2)
            trainer.state.step_in_epoch += 1
            moved |= (ids.weight.detach() != before).any(1) & ~torch.isin(
                torch.arange(len(before)), view.tokens
            )
        weights.append(ids.weight.detach().clone())
    assert moved.any()  # rows outside of the last trainer's batches: by momentum and decay
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-6)


def test_killed_before_the_first_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = outcome(tmp_path / "straight", train(tmp_path / "straight", epochs=2))
    with monkeypatch.context() as patch:
        stop_at(patch, 3, "kill")
        with pytest.raises(Killed):
            train(tmp_path / "broken", epochs=2)
    assert run_state(tmp_path / "broken") == "unfinished"
    assert outcome(tmp_path / "broken", train(tmp_path / "broken", resume=True, epochs=2)) == straight


def test_stopping_says_where(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 2, "ask")
    with pytest.raises(Stopped, match=r"stopped after step 2 \(epoch 1\)") as stop:
        train(tmp_path / "run")
    assert isinstance(stop.value, KeyboardInterrupt)
    _, metadata = read_tensors(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert metadata["progress"]["step"] == 2


def test_ctrl_c_in_the_last_validation_is_heard(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = outcome(tmp_path / "straight", train(tmp_path / "straight", epochs=1))
    validate = Trainer._validate

    interruption = module.Interruption()

    def signalled(self: Trainer, epoch: int, plan: Any) -> dict[str, float]:
        interruption.requested = True
        return validate(self, epoch, plan)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", signalled)
        patch.setattr(module, "interruptible", lambda: nullcontext(interruption))
        with pytest.raises(Stopped, match="the last one"):
            train(tmp_path / "run", epochs=1)
    assert outcome(tmp_path / "run", train(tmp_path / "run", resume=True, epochs=1)) == straight


def test_other_settings_do_not_go_on(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_every_step: None
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5, "kill")
        with pytest.raises(Killed):
            train(tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "last.safetensors").read_bytes()
    with pytest.raises(ArtifactError, match=r"another run \(dropout 0.2 -> 0.3\).*--overwrite"):
        train(tmp_path / "run", resume=True, dropout=0.3)
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").read_bytes() == before


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize("preset", ["sasrec", "hstu", "sasrec-paper"])
def test_case_d17_a_chain_is_learned(preset: str, tmp_path: Path) -> None:
    """200 users, 50 items, each next item (i + 1) mod 50: the loss falls 5 times or more, hr@1 is .9 or more.

    The preset's own settings reach it too, and take minutes; these are quick.
    """
    small = {"d_model": 64, "n_layers": 2, "batch_tokens": 512, "learning_rate": 4e-3, "epochs": 12}
    recommender = Recommender.from_preset(preset, valid_metric="hr@1", **small)
    recommender.fit(chain(), out=tmp_path / "run", device="cpu", progress=False)
    losses = [row["loss"] for row in read_jsonl(tmp_path / "run" / "history.jsonl")]
    assert losses[0] >= 5 * losses[-1], losses
    assert recommender.evaluate(k=1, bootstrap=0)["hr@1"] >= 0.9
    assert read_json(tmp_path / "run" / "config.json")["best"]["value"] >= 0.9
