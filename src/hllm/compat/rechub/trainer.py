"""torch-rechub's trainer over padded windows, kept for comparison; `hllm train` is the fast way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hllm.artifacts import atomic
from hllm.compat.rechub.export import export_onnx
from hllm.compat.rechub.losses import NCELoss
from hllm.compat.rechub.states import STATES, State, check
from hllm.errors import HLLMError
from hllm.export.onnx import OPSET
from hllm.progress import progress

LOSSES = ("cross_entropy", "nce")
PADDING_SCORE = -1e9


class SeqTrainer:
    """Trains and scores a model that maps windows (B, L) and seconds (B, L) to logits (B, L, V).

    `state="rechub"`: every position of a window is a target (its next token; for the last, the
    window's target), except where the input is padding; padding cannot be predicted.
    `state="rechub-doc"`: the last position only, padding a candidate like any other.
    `loss_params` default to temperature .1 for "nce" and to ignore_index 0.

    As in the original, early stopping goes by top-1 accuracy and restores the best weights only
    when it stops; `model.pth` otherwise holds the last epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer_fn: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_params: dict[str, Any] | None = None,
        scheduler_fn: Callable[..., Any] | None = None,
        scheduler_params: dict[str, Any] | None = None,
        n_epoch: int = 10,
        earlystop_patience: int = 10,
        device: str | torch.device = "cpu",
        gpus: Sequence[int] | None = None,
        model_path: str | Path = "./",
        loss_type: str = "cross_entropy",
        loss_params: dict[str, Any] | None = None,
        model_logger: Any = None,
        *,
        state: State = "rechub",
    ) -> None:
        check("loss_type", loss_type, LOSSES)
        check("state", state, STATES)
        self.gpus = list(gpus or [])
        self.model = nn.DataParallel(model, device_ids=self.gpus) if len(self.gpus) > 1 else model
        self.device = torch.device(device)
        self.model.to(self.device)
        params = optimizer_params or {"lr": 1e-3, "weight_decay": 1e-5}
        self.optimizer = optimizer_fn(self.model.parameters(), **params)
        self.scheduler = (
            None if scheduler_fn is None else scheduler_fn(self.optimizer, **(scheduler_params or {}))
        )
        defaults = {"temperature": 0.1, "ignore_index": 0} if loss_type == "nce" else {"ignore_index": 0}
        loss_class: Callable[..., nn.Module] = NCELoss if loss_type == "nce" else nn.CrossEntropyLoss
        self.loss_fn = loss_class(**(loss_params or defaults))
        self.loss_type, self.state, self.n_epoch = loss_type, state, n_epoch
        self.early_stopper = EarlyStopper(earlystop_patience)
        self.model_path, self.model_logger = Path(model_path), model_logger
        self._title = ""  # which epoch progress is of

    def fit(
        self, train_dataloader: Iterable[Any], val_dataloader: Iterable[Any] | None = None
    ) -> dict[str, list[float]]:
        """Train and write `model_path/model.pth`; returns `train_loss, val_loss, val_accuracy` by epoch."""
        history: dict[str, list[float]] = {"train_loss": [], "val_loss": [], "val_accuracy": []}
        rate = self.optimizer.param_groups[0]["lr"]
        self._log(
            "log_hyperparams", {"n_epoch": self.n_epoch, "learning_rate": rate, "loss_type": self.loss_type}
        )
        for epoch in range(self.n_epoch):
            self._title = f"epoch {epoch + 1}/{self.n_epoch}: "
            logs = {"train/loss": self.train_one_epoch(train_dataloader)}
            logs["learning_rate"] = self.optimizer.param_groups[0]["lr"]
            history["train_loss"].append(logs["train/loss"])
            if self.scheduler is not None:
                self.scheduler.step()
            if val_dataloader:
                loss, accuracy = self.evaluate(val_dataloader)
                history["val_loss"].append(loss)
                history["val_accuracy"].append(accuracy)
                logs |= {"val/loss": loss, "val/accuracy": accuracy, "auc": accuracy}
                if self.early_stopper.stop_training(accuracy, self.model.state_dict()):
                    if self.early_stopper.best_weights is not None:
                        self.model.load_state_dict(self.early_stopper.best_weights)
                    break
            self._log("log_metrics", logs, step=epoch)
        self._title = ""
        with atomic(self.model_path / "model.pth") as temporary:
            torch.save(self.model.state_dict(), temporary)
        self._log("finish")
        return history

    def train_one_epoch(self, data_loader: Iterable[Any], log_interval: int = 10) -> float:
        """One pass; returns the mean of the batches' losses."""
        self.model.train()
        total, n = 0.0, 0
        with progress(f"{self._title}training", _length(data_loader), "batches") as bar:
            for n, batch in enumerate(data_loader, start=1):
                loss = self._loss(*self._forward(batch))
                self.model.zero_grad()
                loss.backward()
                self.optimizer.step()
                total += loss.item()
                bar.advance()
                if n % log_interval == 0:
                    bar.note(f"loss {total / n:.4f}")
            bar.note(f"loss {total / max(n, 1):.4f}")
        return total / n if n else 0.0

    @torch.no_grad()
    def evaluate(self, data_loader: Iterable[Any]) -> tuple[float, float]:
        """Mean loss of the batches, and the share of windows whose top item is the target."""
        self.model.eval()
        total, hits, n_windows, n_batches = 0.0, 0, 0, 0
        with progress(f"{self._title}evaluating", _length(data_loader), "batches") as bar:
            for batch in data_loader:
                logits, tokens, targets = self._forward(batch)
                total += self._loss(logits, tokens, targets).item()
                last = logits[:, -1] if self.state == "rechub-doc" else without_padding(logits[:, -1])
                hits += int((last.argmax(-1) == targets).sum())
                n_windows += targets.numel()
                n_batches += 1
                bar.advance()
            loss, accuracy = total / max(n_batches, 1), hits / max(n_windows, 1)
            bar.note(f"loss {loss:.4f}, accuracy {accuracy:.4f}")
        return loss, accuracy

    def export_onnx(
        self,
        output_path: str | Path,
        batch_size: int = 2,
        seq_length: int = 50,
        vocab_size: int | None = None,
        opset_version: int = OPSET,
        dynamic_batch: bool = True,
        device: str | torch.device | None = None,
        verbose: bool = False,
        onnx_export_kwargs: dict[str, Any] | None = None,
    ) -> bool:
        """Write the model as ONNX (`hllm.compat.rechub.export`), compare it with the model; True.

        `verbose` changes nothing; calls written for the original give it.
        """
        model = getattr(self.model, "module", self.model)
        try:
            export_onnx(
                model, output_path, batch_size, seq_length, vocab_size, opset_version, dynamic_batch, device,
                onnx_export_kwargs,
            )  # fmt: skip
        finally:
            self.model.to(self.device)
        return True

    def visualization(self, *args: Any, **kwargs: Any) -> None:
        """Not here: raises HLLMError saying what is possible instead."""
        raise HLLMError(
            "SeqTrainer.visualization is not part of hllm.compat; print(trainer.model) lists the layers"
        )

    def _forward(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, L, V), tokens (B, L) and targets (B,) of a loader's batch; positions are not used."""
        tokens, _, seconds, targets = batch
        tokens, targets = tokens.to(self.device), targets.to(self.device).reshape(-1)
        return self.model(tokens, seconds.to(self.device)), tokens, targets

    def _loss(self, logits: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        if self.state == "rechub-doc":
            return self.loss_fn(logits[:, -1], targets)
        return self._compute_next_token_loss(logits, tokens, targets)

    def _compute_next_token_loss(self, logits: Tensor, seq_tokens: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits (B, L, V) at every position of windows (B, L); the last one's target is in `targets` (B,)."""
        # The last padded slot's next token is a real item: no model should learn that step.
        following = torch.cat((seq_tokens[:, 1:], targets.unsqueeze(-1)), dim=1)
        following = following.masked_fill(seq_tokens.eq(0), 0)
        return self.loss_fn(without_padding(logits).flatten(0, 1), following.flatten())

    def _log(self, method: str, *args: Any, **kwargs: Any) -> None:
        loggers = self.model_logger
        if loggers is None:
            return
        for logger in loggers if isinstance(loggers, list | tuple) else [loggers]:
            getattr(logger, method)(*args, **kwargs)


class EarlyStopper:
    """Stops once `patience` validations in a row were no better, and keeps the best one's weights."""

    def __init__(self, patience: int) -> None:
        self.patience, self.trial_counter, self.best_auc = patience, 0, 0.0
        self.best_weights: dict[str, Any] | None = None

    def stop_training(self, val_auc: float, weights: dict[str, Any]) -> bool:
        """Whether to stop after a validation of value `val_auc`."""
        if val_auc > self.best_auc:
            self.best_auc, self.trial_counter = val_auc, 0
            self.best_weights = copy.deepcopy(weights)
            return False
        self.trial_counter += 1
        return self.trial_counter >= self.patience


def without_padding(logits: Tensor) -> Tensor:
    """Copy of logits (..., V) whose padding item (token 0) cannot win."""
    logits = logits.clone()
    logits[..., 0] = PADDING_SCORE
    return logits


def _length(loader: Iterable[Any]) -> int | None:
    return len(loader) if isinstance(loader, Sized) else None
