"""One optimiser step in three phases: lease item vectors, train on them, spend their gradient.

    vectors = source.lease(items)          who makes the vectors: a table, a language model, learned ids
    loss    = user half(batch, vectors)    forward and backward, down to the vectors
    lease.backward(); clip; optimiser      their gradient goes where they came from

The user half never touches the source. On a CUDA device it is captured once as a graph and replayed
(train/captured.py), together with the source where that allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from hllm import hardware, kernels
from hllm.items.source.live import LiveText
from hllm.losses.objective import Objective
from hllm.models.hllm import Network
from hllm.packing import Batch, ItemView
from hllm.train.config import Runtime, TrainingConfig
from hllm.train.optim import Optimizer
from hllm.train.parallel import Parallel

Step = Callable[[Batch, ItemView], Tensor]


def use_bf16(runtime: Runtime, device: torch.device) -> bool:
    """bf16 where it was asked for, or by default on a CUDA device that computes in it; never by default otherwise."""
    if runtime.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return runtime.precision == "bf16"


def autocast(runtime: Runtime, device: torch.device) -> AbstractContextManager[object]:
    """The context that models and losses run in."""
    if not use_bf16(runtime, device):
        return nullcontext()
    # A captured graph must cast the weights itself, hence no cast cache.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def rounded_products(runtime: Runtime, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products of float32 on a CPU with instructions for bf16: their operands are rounded to it, sums stay wide.

    By default, `precision=fp32` forbids it. Tensors are float32 all along, so nothing but products differs, and
    oneDNN rounds as it reads: three times as fast with AMX, where casts of their own would cost half of that. What is
    validated and ranked is computed in float32 throughout.
    """
    if device.type != "cpu" or runtime.precision != "auto" or not hardware.bf16_is_fast(device):
        return nullcontext()
    return hardware.cpu_products("bf16")


def gradient_plans(network: Network) -> list[str]:
    """How the gradients of trained item LLMs are computed, as the last step did."""
    return [str(m.plan) for m in network.source.modules() if isinstance(m, LiveText) and m.plan is not None]


class TrainStep:
    """Takes a batch and its view, trains on them, and returns the detached loss.

    On an accelerator the loss comes back before the device has computed it; reading it waits.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        objective: Objective,
        training: TrainingConfig,
        runtime: Runtime,
        device: torch.device,
        parallel: Parallel | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.objective = objective
        self.grad_clip = training.grad_clip
        self.runtime = runtime
        self.device = device
        self.parallel = parallel or Parallel()
        self.half = self.user_half  # or a captured form of it (train/captured.py)

    def __call__(self, batch: Batch, view: ItemView) -> Tensor:
        with rounded_products(self.runtime, self.device):
            return self._step(batch, view)

    def _step(self, batch: Batch, view: ItemView) -> Tensor:
        self.optimizer.zero_grad()
        with autocast(self.runtime, self.device):
            lease = self.network.source.lease(view.tokens)
        loss = self.half(batch, view, lease.vectors)
        if lease.vectors.grad is not None:
            self.parallel.ranks.average([lease.vectors.grad])
        lease.backward()
        self.parallel.average_gradients(self.network)
        self.optimizer.step(self.grad_clip)
        return loss

    def user_half(self, batch: Batch, view: ItemView, vectors: Tensor) -> Tensor:
        """Forward and backward from `vectors` (M, w), whose gradient is left in `vectors.grad`."""
        with autocast(self.runtime, self.device), kernels.switched(self.runtime.kernels):
            outputs = self.network.model(batch, view, vectors)
            loss = self.objective(outputs.queries, outputs.classes, batch, view)
        self.parallel.backward(loss)
        return loss.detach()
