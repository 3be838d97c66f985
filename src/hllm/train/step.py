"""One optimiser step: forward, loss, backward, clipping, AdamW. On a GPU, replayed as a CUDA graph.

A step of this model is some two thousand small kernels; launching them one by one takes a GPU
several times longer than running them. Batches are padded to one shape, the step is captured once,
and every later step is a single launch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from hllm.config import Config
from hllm.data.batches.training import TrainLoader
from hllm.losses.objective import make_objective
from hllm.models.hllm import HLLM
from hllm.packing import Batch, Rows, make_rows

SPARE_ROWS = 1.15  # rows per batch over the least possible number, for what does not fit together
WARMUP_STEPS = 3  # ordinary steps before capture, so that lazily made state exists

Step = Callable[[Batch], Tensor]


def use_bf16(config: Config, device: torch.device) -> bool:
    """bf16 matrix products: where the GPU has them, unless the configuration says otherwise."""
    if config.runtime.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.runtime.precision == "bf16"


def make_step(network: HLLM, optimizer: torch.optim.Optimizer, config: Config, loader: TrainLoader) -> Step:
    """Return a function that takes a batch, trains on it, and returns the detached loss.

    On CUDA the loss comes back before the device has computed it; reading it waits.
    """
    device = loader.device
    bf16 = use_bf16(config, device)
    objective = make_objective(config, _training_events(network, loader))

    def step(batch: Batch) -> Tensor:
        # A captured graph must cast the weights itself, hence no cast cache.
        context = torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if bf16 else nullcontext()
        with context:
            queries, items, targets = network(batch)
            loss = objective(queries, items, targets, batch, network.source.trained_rows)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.training.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.training.grad_clip)
        optimizer.step()
        return loss.detach()

    return GraphedStep(step, loader) if device.type == "cuda" and config.runtime.capture else step


def _training_events(network: HLLM, loader: TrainLoader) -> Tensor:
    """Training events int64 (M,) of each training item, in the order of the loss's classes."""
    counts = torch.bincount(loader.tokens.long(), minlength=network.source.n_items + 1)
    return counts[network.source.trained_tokens]


class GraphedStep:
    """A step captured once at a fixed shape (T tokens, B rows of R slots) and replayed."""

    def __init__(self, step: Step, loader: TrainLoader) -> None:
        self.step = step
        longest = loader.longest_window()
        self.row = -(-longest // 16) * 16
        self.n_tokens = max(loader.batch_tokens, longest)
        # A row may hold one longest window only, however much room that leaves.
        self.n_rows = int(self.n_tokens / min(self.row / SPARE_ROWS, longest)) + 2
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm = 0
        self.static: Batch | None = None
        self.loss: Tensor | None = None

    def __call__(self, batch: Batch) -> Tensor:
        try:
            rows = make_rows(batch, self.row, self.n_rows)
        except ValueError:  # an unlucky mix of lengths: right, only slower
            return self.step(batch)
        self._fill(batch, rows)
        assert self.static is not None
        if self.warm < WARMUP_STEPS:
            self.warm += 1
            return self._on_side_stream(self.static)
        if self.graph is None:
            self._capture(self.static)
        assert self.graph is not None and self.loss is not None
        self.graph.replay()
        return self.loss.clone()

    def _fill(self, batch: Batch, rows: Rows) -> None:
        """Copy the batch into the static tensors; what is left over holds nothing to predict."""
        if self.static is None:
            self.static = self._allocate(batch)
        static, t = self.static, batch.n_tokens
        assert static.rows is not None
        static.tokens.zero_()[:t] = batch.tokens
        static.times.zero_()[:t] = batch.times
        static.targets.zero_()[:t] = batch.targets
        static.users.zero_()[: batch.n_users] = batch.users
        static.rows.segments.copy_(rows.segments)
        # Left-over tokens go to empty slots, so that every slot keeps at most one token: the grid has
        # n_tokens slots or more, and t of them are taken.
        empty = torch.argsort((rows.segments.flatten() >= 0).to(torch.int8), stable=True)
        static.rows.slots[:t] = rows.slots
        static.rows.slots[t:] = empty[: self.n_tokens - t]

    def _allocate(self, batch: Batch) -> Batch:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=batch.tokens.device)

        rows = Rows(zeros(self.n_tokens), zeros(self.n_rows, self.row))
        return replace(
            batch,
            users=zeros(self.n_tokens),
            tokens=zeros(self.n_tokens),
            times=zeros(self.n_tokens),
            targets=zeros(self.n_tokens),
            rows=rows,
        )

    def _on_side_stream(self, batch: Batch) -> Tensor:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = self.step(batch)
        torch.cuda.current_stream().wait_stream(side)
        return loss

    def _capture(self, batch: Batch) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.step(batch)
