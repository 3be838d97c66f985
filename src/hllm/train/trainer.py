"""The training loop. Deterministic on the CPU: a run that was stopped and resumed ends with the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hllm.artifacts import write_jsonl
from hllm.config import Config
from hllm.data.batches.training import TrainLoader
from hllm.errors import TrainingError
from hllm.models.hllm import HLLM
from hllm.packing import Batch
from hllm.progress import Bar, progress
from hllm.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from hllm.train.health import check_loss, check_vectors, spaced_rows
from hllm.train.interrupt import Interruption, interruptible
from hllm.train.optim import WeightAverage, learning_rate, make_optimizer, set_rate
from hllm.train.step import make_step

CHECKPOINT_SECONDS = 15.0  # training lost at most to a kill -9
FLAT_VALIDATIONS = 3  # in a row, with all user vectors in one direction, before training stops
LOSS_CHECK_STEPS = 50  # looking at the loss waits for the device, so not every step

Validate = Callable[[HLLM], dict[str, float]]


class Stopped(KeyboardInterrupt):
    """Training was interrupted by the user; the checkpoint is written."""


@dataclass
class FitResult:
    """What training leaves: `network` holds the best validation weights."""

    best_epoch: int
    best_value: float
    history: list[dict[str, Any]]
    seconds: float  # training and validation, over all parts of an interrupted run
    peak_memory: int | None  # bytes on the GPU, None on a CPU


class Trainer:
    """Trains `network` on a loader's batches, validating with `validate(network)`.

    folder     where `history.jsonl` and `checkpoints/last.safetensors` go; None keeps nothing on disk
    identity   what a checkpoint must share to be resumed
    """

    def __init__(
        self,
        network: HLLM,
        loader: TrainLoader,
        config: Config,
        validate: Validate,
        folder: Path | None = None,
        identity: dict[str, Any] | None = None,
        show: bool = True,
    ) -> None:
        self.network = network
        self.loader = loader
        self.config = config
        self.validate = validate
        self.folder = folder
        self.identity = identity or {}
        self.show = show
        self.device = loader.device
        self.optimizer = make_optimizer(network, config)
        self.average = WeightAverage(network, config.ema_decay) if config.ema_decay else None
        self.state = Progress()
        self.best: dict[str, Tensor] | None = None
        self.step = make_step(network, self.optimizer, config, loader)

    @property
    def checkpoint(self) -> Path | None:
        return None if self.folder is None else self.folder / "checkpoints" / "last.safetensors"

    def resume(self) -> None:
        """Continue from the folder's checkpoint, to the same bits on the CPU as without the break."""
        assert self.checkpoint is not None
        self.state, self.best = load_checkpoint(self.checkpoint, self.network, self.optimizer, self.average)

    def save(self) -> None:
        """Write the checkpoint; `history.jsonl` follows it, so that it never runs ahead."""
        if self.folder is None or self.checkpoint is None:
            return
        save_checkpoint(
            self.checkpoint, self.state, self.network, self.optimizer, self.average, self.best, self.identity
        )
        write_jsonl(self.folder / "history.jsonl", self.state.history)

    def fit(self) -> FitResult:
        """Train to the end, or until patience runs out; load the best weights into the network.

        Raises Stopped after Ctrl-C (the step is finished and saved first), and TrainingError for NaN
        or collapsed vectors.
        """
        self._saved_at = time.monotonic()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        shown = progress("train", self.config.epochs, "epochs", self.show, done=self.state.epoch)
        with interruptible() as interruption, shown as bar:
            while not self.state.finished:
                self._epoch(interruption, bar)
                bar.advance()
        self.save()
        if interruption.requested:  # during the last validation: what comes after training is not wanted
            raise Stopped(f"stopped after step {self.state.step}, the last one")
        assert (
            self.best is not None and self.state.best_epoch is not None and self.state.best_value is not None
        )
        self.network.load_state_dict(self.best)
        self.network.eval()
        return FitResult(
            self.state.best_epoch,
            self.state.best_value,
            self.state.history,
            self.state.seconds,
            torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None,
        )

    def _epoch(self, interruption: Interruption, bar: Bar) -> None:
        state, started = self.state, time.monotonic()
        _, slices = self.loader.plan(state.epoch)
        losses: list[Tensor] = []
        self.network.train()
        bar.inside(state.step_in_epoch, len(slices))
        for batch in self.loader.epoch(state.epoch, skip=state.step_in_epoch):
            share = (state.epoch + state.step_in_epoch / len(slices)) / self.config.epochs
            losses.append(self._step(batch, learning_rate(self.config, share)))
            state.step += 1
            state.step_in_epoch += 1
            bar.inside(state.step_in_epoch, len(slices))
            if len(losses) >= LOSS_CHECK_STEPS:
                self._collect(losses)
            due = time.monotonic() - self._saved_at > CHECKPOINT_SECONDS
            if interruption.requested or (due and state.step_in_epoch < len(slices)):
                self._collect(losses)
                started = self._pause(started)
            if interruption.requested:
                raise Stopped(f"stopped after step {state.step} (epoch {state.epoch + 1})")
        self._collect(losses)
        self._finish_epoch(len(slices), bar)
        if time.monotonic() - self._saved_at > CHECKPOINT_SECONDS or state.finished:
            started = self._pause(started)
        state.seconds += time.monotonic() - started

    def _step(self, batch: Batch, rate: float) -> Tensor:
        """One optimiser step; returns the detached loss, which is not waited for."""
        set_rate(self.optimizer, rate)
        loss = self.step(batch)
        if self.average is not None:
            self.average.update()
        return loss

    def _collect(self, losses: list[Tensor]) -> None:
        """Add the pending losses to the epoch's sum, one by one so that a break changes no bit."""
        for value in torch.stack(losses).tolist() if losses else []:
            check_loss(value, self.state.step)
            self.state.loss_sum += value
        losses.clear()

    def _pause(self, started: float) -> float:
        """Save; returns the new start of the clock (saving counts as training time)."""
        now = time.monotonic()
        self.state.seconds += now - started
        self.save()
        self._saved_at = time.monotonic()
        return now

    def _finish_epoch(self, n_steps: int, bar: Bar) -> None:
        state, config = self.state, self.config
        row: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "loss": state.loss_sum / max(n_steps, 1),
            # Of the epoch's last step; not read from the optimiser, which a resumed run may not have
            # stepped in this epoch.
            "learning_rate": learning_rate(config, (state.epoch + 1 - 1 / max(n_steps, 1)) / config.epochs),
        }
        state.epoch += 1
        state.step_in_epoch, state.loss_sum = 0, 0.0
        if state.epoch % config.eval_every == 0 or state.epoch == config.epochs:
            row |= self._validate(state.epoch)
        state.history.append(row)
        out_of_patience = config.patience is not None and state.stale_epochs >= config.patience
        state.finished = state.epoch >= config.epochs or out_of_patience
        value = row.get(config.valid_metric)
        bar.note(
            f"loss {row['loss']:.4f}" + (f", {config.valid_metric} {value:.4f}" if value is not None else "")
        )

    def _validate(self, epoch: int) -> dict[str, float]:
        """Validate the averaged weights; keep them if they are the best so far."""
        self.network.eval()
        with self.average.applied() if self.average is not None else nullcontext():
            self._check_health(epoch)
            values = self.validate(self.network)
            value = values[self.config.valid_metric]
            better = self.state.best_value is None or value > self.state.best_value
            if better and not self.state.flat_validations:
                self.state.best_value, self.state.best_epoch, self.state.stale_epochs = value, epoch, 0
                self.best = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
            elif self.best is not None:  # before there is a best one, patience does not count
                self.state.stale_epochs += 1
        return values

    @torch.no_grad()
    def _check_health(self, epoch: int) -> None:
        source = self.network.source
        check_vectors(source.encode(spaced_rows(source.trained_tokens)), "item", epoch)
        windows, slices = self.loader.plan(epoch)
        batch = self.loader.assemble(windows.take(slices[0]))
        queries = self.network.query(batch)
        try:
            check_vectors(queries, "user", epoch)
        except TrainingError:
            # After few steps every user may still be predicted what is popular; only what lasts is a collapse.
            # Until then the weights are no candidates for the best.
            self.state.flat_validations += 1
            lasts = self.state.flat_validations >= FLAT_VALIDATIONS
            last = self.state.epoch >= self.config.epochs and self.best is None
            if lasts or last or not bool(torch.isfinite(queries).all()):
                raise
        else:
            self.state.flat_validations = 0
