"""The training loop. Deterministic on the CPU: a run that was stopped and resumed ends with the same bits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hllm import hardware, kernels
from hllm.artifacts import read_tensors, write_jsonl, write_tensors
from hllm.data.batches.training import Plan, TrainLoader
from hllm.errors import TrainingError
from hllm.losses.objective import Objective
from hllm.losses.sampled import similar_share
from hllm.losses.views import Views
from hllm.models.hllm import Network
from hllm.packing import Batch, padded_view, part_of
from hllm.progress import Bar, duration, progress
from hllm.ranks import ALONE, Ranks
from hllm.train.captured import PaddedShape, capture
from hllm.train.checkpoint import (
    Progress,
    fitted,
    load_checkpoint,
    load_trained,
    save_checkpoint,
    trained,
)
from hllm.train.compiled import CompiledBlocks, blocks_of, is_worth_compiling, kernels_work, parts_of
from hllm.train.config import Runtime, TrainingConfig, chosen
from hllm.train.files import LAST, best_path, drop_other_bests
from hllm.train.health import (
    check_loss,
    check_masked,
    check_vectors,
    distinct_users,
    effective_rank,
    mean_cosine,
    spaced_rows,
)
from hllm.train.interrupt import Interruption, interruptible
from hllm.train.optim import WeightAverage, evaluation_weights, learning_rate
from hllm.train.parallel import Parallel, check_strategy, spread_layers
from hllm.train.step import Step, TrainStep, autocast, gradient_plans, use_bf16
from hllm.train.zero import make_optimizer

SAVE, STOP = 1, 2  # what a rank wishes after a step
CHECKPOINT_SECONDS = 15.0  # between two checkpoints at least; more where writing one takes long (`Runtime`)
SAVE_RATE = 200 << 20  # bytes of a checkpoint a second: what the first is expected to take
FLAT_VALIDATIONS = 3  # in a row, with all user vectors in one direction, before training stops
LOSS_CHECK_STEPS = 50  # looking at the loss waits for the device, so not every step

Validate = Callable[[Network], dict[str, float]]


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
    compile_seconds: float | None = None  # of `seconds`, spent on compiling blocks; None: nothing was


class Trainer:
    """Trains `network` on a loader's batches, validating with `validate(network)`.

    lazy       id embeddings are updated by rows
    drop_similar  the objective's, whose effect on the negatives is watched
    folder     where `history.jsonl` and `checkpoints/` go; None keeps nothing on disk
    identity   what a checkpoint must share to be resumed
    ranks      of which each takes its part of every batch; the first one writes and shows
    """

    def __init__(
        self,
        network: Network,
        loader: TrainLoader,
        views: Views,
        objective: Objective,
        training: TrainingConfig,
        validate: Validate,
        *,
        device: torch.device,
        runtime: Runtime | None = None,
        lazy: bool = False,
        drop_similar: float | None = None,
        folder: Path | None = None,
        identity: dict[str, Any] | None = None,
        show: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self.network = network
        self.loader = loader
        self.views = views
        self.training = training
        self.epochs = chosen(training.epochs)
        self.runtime = runtime or Runtime()
        self.validate = validate
        self.checkpoints = None if folder is None else folder / "checkpoints"
        self.history_file = None if folder is None else folder / "history.jsonl"
        self.identity = identity or {}
        self.ranks = ranks
        self.show = show and ranks.first
        self.device = device
        self.drop_similar = drop_similar
        self.parallel = Parallel(ranks, self.runtime.strategy if ranks.many else "ddp")
        check_strategy(network, training, self.parallel.strategy)
        if self.parallel.strategy == "fsdp":
            spread_layers(network, ranks, device, use_bf16(self.runtime, device))
        self.optimizer = make_optimizer(network, training, lazy, self.runtime, self.parallel, device)
        self.parallel.take_in(network)
        decay = training.ema_decay
        self.average = WeightAverage(self.optimizer.parameters, decay) if decay else None
        self.state = Progress()
        # The best weights wait in memory, as one more set of weights beside the optimiser's three, until a
        # checkpoint is due; None: there are none, or they are on disk.
        self.best: dict[str, Tensor] | None = None
        plain = TrainStep(network, self.optimizer, objective, training, self.runtime, device, self.parallel)
        self.shape = self._captured_shape()
        self.compiled, self._said_compiled = self._compiled_blocks(), False
        self.step: Step = plain if self.shape is None else capture(plain, self.shape.n_tokens, self.compiled)
        size = sum(p.nbytes for p in trained(network, self.optimizer).values())
        self._saved_at, self._save_seconds = time.monotonic(), (4 + bool(decay)) * size / SAVE_RATE

    def _captured_shape(self) -> PaddedShape | None:
        """The shape to capture a step at; None where steps run as they are."""
        user_model = self.network.model.user_model
        if (
            self.device.type != "cuda"
            or not self.runtime.capture
            or self.parallel.sharded
            or not getattr(user_model, "fixed_shapes", True)
        ):
            return None
        by_bounds = kernels_work(self.network, self.device, self.runtime)
        shape = PaddedShape(self.loader, self.ranks.world, by_bounds)
        return shape if shape.fits_a_mask(getattr(user_model, "n_heads", 1)) else None

    def _compiled_blocks(self) -> CompiledBlocks | None:
        """The user model's blocks, to be compiled; None where steps run as they are written."""
        blocks, wanted = blocks_of(self.network.model.user_model), self.runtime.compile
        if wanted is False or not blocks:
            return None
        if self.shape is None:
            if wanted is True:
                warnings.warn(
                    "compile=true acts on captured steps on a CUDA device; these are none", stacklevel=4
                )
            return None
        size = len(blocks), self.network.source.width
        if wanted == "auto" and not is_worth_compiling(self.loader, self.training, *size):
            return None
        return CompiledBlocks(parts_of(self.network.model))

    @property
    def checkpoint(self) -> Path | None:
        return None if self.checkpoints is None else self.checkpoints / LAST

    def resume(self) -> None:
        """Continue from the folder's checkpoint, to the same bits on the CPU as without the break."""
        assert self.checkpoint is not None
        self.state, nearest = load_checkpoint(
            self.checkpoint, self.network, self.optimizer, self.average, self.ranks
        )
        if nearest is not None:
            self.views.negatives.set_nearest(nearest.to(self.views.device))

    def save(self) -> None:
        """Write the checkpoint; `history.jsonl` follows it, so that it never runs ahead."""
        if self.checkpoints is None or self.checkpoint is None or self.history_file is None:
            return
        started = time.monotonic()
        if self.best is not None and self.ranks.first:
            assert self.state.best_epoch is not None
            write_tensors(best_path(self.checkpoints, self.state.best_epoch), self.best)
        self.best = None
        save_checkpoint(
            self.checkpoint,
            self.state,
            self.network,
            self.optimizer,
            self.average,
            self.identity,
            self.views.negatives.nearest,
            self.ranks,
        )
        if self.ranks.first:
            drop_other_bests(self.checkpoints, self.state.best_epoch)
            write_jsonl(self.history_file, self.state.history)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started

    def _due(self) -> bool:
        """Whether it is time for a checkpoint: some seconds have passed, and writing takes a small share."""
        wait = max(CHECKPOINT_SECONDS, self._save_seconds / self.runtime.checkpoint_share)
        return time.monotonic() - self._saved_at > wait

    def probe(self, steps: int) -> None:
        """Take a few steps of the first epoch, to see whether they fit into memory; the trainer is then used up."""
        self.network.train()
        for batch in islice(self.loader.epoch(0), steps):
            float(self._step(batch, self.training.learning_rate))

    def fit(self) -> FitResult:
        """Train to the end, or until patience runs out; load the best weights into the network.

        Raises Stopped after Ctrl-C (the step is finished and saved first), and TrainingError for NaN
        or collapsed vectors.
        """
        self._saved_at = time.monotonic()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        shown = progress("train", self.epochs, "epochs", self.show, done=self.state.epoch)
        with interruptible() as interruption, shown as bar, hardware.few_threads(self.device):
            while not self.state.finished:
                self._epoch(interruption, bar)
                bar.advance()
        best = self.best  # saving moves it from memory to its file
        self.save()
        # Asked for during the last validation: what comes after training is not wanted.
        if self.ranks.most(interruption.requested):
            raise Stopped(f"stopped after step {self.state.step}, the last one")
        self._load_best(best)
        self.optimizer.release()
        self.network.eval()
        assert self.state.best_epoch is not None and self.state.best_value is not None
        return FitResult(
            self.state.best_epoch,
            self.state.best_value,
            self.state.history,
            self.state.seconds,
            torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None,
            None if self.compiled is None else self.compiled.seconds,
        )

    def _epoch(self, interruption: Interruption, bar: Bar) -> None:
        state, started = self.state, time.monotonic()
        plan = self.loader.plan(state.epoch)
        losses: list[Tensor] = []
        if self.views.negatives.n_hard and state.step_in_epoch == 0:
            self._refresh_views()
        self.network.train()
        bar.inside(state.step_in_epoch, len(plan))
        for batch in self.loader.batches(plan, skip=state.step_in_epoch):
            share = (state.epoch + state.step_in_epoch / len(plan)) / self.epochs
            losses.append(self._step(batch, learning_rate(self.training, share)))
            state.step += 1
            state.step_in_epoch += 1
            if not self._said_compiled and self.compiled is not None and self.compiled.seconds is not None:
                self._said_compiled = True
                bar.note(f"blocks compiled in {duration(self.compiled.seconds)}")
            bar.inside(state.step_in_epoch, len(plan))
            if len(losses) >= LOSS_CHECK_STEPS:
                self._collect(losses)
            wish = STOP if interruption.requested else SAVE if self._due() else 0
            wish = self.ranks.most(wish)  # all ranks save together, and stop after the same step
            if wish == STOP or (wish == SAVE and state.step_in_epoch < len(plan)):
                self._collect(losses)
                started = self._pause(started)
            if wish == STOP:
                raise Stopped(f"stopped after step {state.step} (epoch {state.epoch + 1})")
        self._collect(losses)
        self._finish_epoch(plan, bar)
        if self.ranks.most(self._due()) and not state.finished:  # `fit` saves the end
            started = self._pause(started)
        state.seconds += time.monotonic() - started

    def _refresh_views(self) -> None:
        """Find this epoch's hard negatives by the items' vectors under the weights that are trained."""
        self.network.eval()
        classes = torch.from_numpy(self.views.classes).to(self.device)
        self.views.refresh(self.network.table().scored[classes].float())

    def _step(self, batch: Batch, rate: float) -> Tensor:
        """One optimiser step; returns the detached loss, which is not waited for."""
        self.optimizer.set_rate(rate)
        at = self.state.epoch, self.state.step_in_epoch
        if self.ranks.many:
            batch, view = part_of(batch, self.views.view(batch, at), self.ranks.rank, self.ranks.world)
            if self.shape is not None and (padded := self.shape.pad(batch)):
                batch, view = padded, padded_view(view, self.shape.n_tokens, self.shape.n_events)
        else:
            if self.shape is not None:
                batch = self.shape.pad(batch) or batch
            view = self.views.view(batch, at)
        loss = self.step(batch.to(self.device), view)
        if self.average is not None:
            self.average.update()
        return loss

    def _collect(self, losses: list[Tensor]) -> None:
        """Add the pending losses to the epoch's sum, one by one so that a break changes no bit."""
        together = torch.stack(losses) if losses else torch.zeros(0)
        if losses and self.ranks.many:  # each rank's is its share of the whole batch's
            self.ranks.average([together])
            together *= self.ranks.world
        for value in together.tolist():
            check_loss(value, self.state.step)
            self.state.loss_sum += value
        losses.clear()

    def _pause(self, started: float) -> float:
        """Save; returns the new start of the clock (saving counts as training time)."""
        now = time.monotonic()
        self.state.seconds += now - started
        self.save()
        return now

    def _finish_epoch(self, plan: Plan, bar: Bar) -> None:
        state, training, n_steps = self.state, self.training, len(plan)
        row: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "loss": state.loss_sum / max(n_steps, 1),
            # Of the epoch's last step; not read from the optimiser, which a resumed run may not have
            # stepped in this epoch.
            "learning_rate": learning_rate(training, (state.epoch + 1 - 1 / max(n_steps, 1)) / self.epochs),
        }
        if plans := gradient_plans(self.network):
            row["item_llm_plan"] = plans[0]
        state.epoch += 1
        state.step_in_epoch, state.loss_sum = 0, 0.0
        if state.epoch % training.eval_every == 0 or state.epoch == self.epochs:
            row |= self._validate(state.epoch, plan)
        state.history.append(row)
        out_of_patience = training.patience is not None and state.stale_epochs >= training.patience
        state.finished = state.epoch >= self.epochs or out_of_patience
        value = row.get(training.valid_metric)
        metric = "" if value is None else f", {training.valid_metric} {value:.4f}"
        bar.note(f"loss {row['loss']:.4f}{metric}")

    def _validate(self, epoch: int, plan: Plan) -> dict[str, float]:
        """Validate the averaged weights; keep them if they are the best so far.

        Hidden states are made as in training, in bf16 by kernels where that is; scores are float32 all the same.
        """
        self.network.eval()
        by_kernels = self.shape is not None and self.shape.by_bounds
        with evaluation_weights(self.average, self.optimizer):
            self.network.table()  # made here, and so not in bf16
            with autocast(self.runtime, self.device), kernels.switched(by_kernels):
                health = self._check_health(epoch, plan)
                values = self.validate(self.network)
            value = values[self.training.valid_metric]
            better = self.state.best_value is None or value > self.state.best_value
            if better and not self.state.flat_validations:
                self.state.best_value, self.state.best_epoch, self.state.stale_epochs = value, epoch, 0
                self.best = self._kept_weights()
            elif self.state.best_epoch is not None:  # before there is a best one, patience does not count
                self.state.stale_epochs += 1
        self.network.eval()  # its item table was of these weights
        return values | health

    def _kept_weights(self) -> dict[str, Tensor]:
        """The trained weights as `evaluation_weights` has put them, in memory of their own on the CPU."""
        caught_up = {id(part.weight) for part in self.optimizer.lazy}  # made for this validation alone
        kept = {}
        for name, p in trained(self.network, self.optimizer).items():
            value = self.optimizer.whole(p)
            if self.ranks.first:
                kept[name] = value.to("cpu", copy=id(p) not in caught_up)
        return kept

    def _load_best(self, best: dict[str, Tensor] | None) -> None:
        """Load the best weights into the network: `best`, or those on disk."""
        path = Path("best")
        if best is None and self.ranks.first:
            assert self.checkpoints is not None and self.state.best_epoch is not None
            path = best_path(self.checkpoints, self.state.best_epoch)
            best, _ = read_tensors(path)
        if self.parallel.sharded:
            extra = {name: value.cpu() for name, value in fitted(self.network).items()}
            self.best = best | extra if best is not None else None
            return
        load_trained(path, trained(self.network, self.optimizer), best, self.ranks)

    @torch.no_grad()
    def _check_health(self, epoch: int, plan: Plan) -> dict[str, float]:
        """Stop where vectors have collapsed; else what tells how far from it they are."""
        classes = spaced_rows(torch.from_numpy(self.views.classes)).to(self.device)
        table = self.network.table()
        vectors = table.raw[classes]
        check_vectors(vectors, "item", epoch)
        health = {"item_cosine": mean_cosine(vectors), "item_effective_rank": effective_rank(vectors)}
        batch = self.loader.assemble(plan.windows.take(plan.slices[0]))
        if self.drop_similar is not None:
            view = self.views.view(batch, (epoch, 0))
            share = similar_share(table.scored[view.tokens], view, self.drop_similar)
            check_masked(share, self.drop_similar, epoch)
            health["masked_negatives"] = share
        queries = self.network.query(batch.to(self.device))[distinct_users(batch)]
        try:
            check_vectors(queries, "user", epoch)
        except TrainingError:
            # After few steps every user may still be predicted what is popular; only what lasts is a collapse.
            # Until then the weights are no candidates for the best.
            self.state.flat_validations += 1
            lasts = self.state.flat_validations >= FLAT_VALIDATIONS
            last = self.state.epoch >= self.epochs and self.state.best_epoch is None
            if lasts or last or not bool(torch.isfinite(queries).all()):
                raise
        else:
            self.state.flat_validations = 0
        return health
