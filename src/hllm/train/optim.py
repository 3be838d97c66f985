"""AdamW groups, the learning-rate schedule, and the exponential moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hllm.config import Config


def make_optimizer(network: nn.Module, config: Config) -> torch.optim.Adam:
    """AdamW (Loshchilov and Hutter, 2019); vectors and scalars (norms, biases, temperature) do not decay.

    `optimizer="adam"`: Adam as torch-rechub uses it, weight decay a penalty on every weight.
    """
    matrices = [p for p in network.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.requires_grad and p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.training.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    # On CUDA the rate lives in a tensor, so that a captured step sees it change.
    cuda = next(network.parameters()).is_cuda
    rate = (
        torch.tensor(config.training.learning_rate, device="cuda") if cuda else config.training.learning_rate
    )
    if config.training.optimizer == "adam":
        trained = [p for p in network.parameters() if p.requires_grad]
        return torch.optim.Adam(
            trained, lr=rate, weight_decay=config.training.weight_decay, fused=True, capturable=cuda
        )
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True, capturable=cuda)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(config: Config, progress: float) -> float:
    """Rate after a share `progress` in [0, 1] of training: linear warm-up, then a cosine.

    A function of the share, not of a step count, since token-budget epochs differ by a step or two.
    """
    if progress < config.training.warmup_ratio:
        return config.training.learning_rate * max(progress, 1e-3) / config.training.warmup_ratio
    share = (progress - config.training.warmup_ratio) / max(1e-9, 1 - config.training.warmup_ratio)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return config.training.learning_rate * (
        config.training.min_lr_ratio + (1 - config.training.min_lr_ratio) * cosine
    )


class WeightAverage:
    """Exponential moving average of the weights, with a warm-up so that early steps do not linger.

    The decay of step n is min(decay, (1 + n) / (10 + n)). Averaged weights are what is validated,
    saved and used; the raw ones go on training.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = list(network.parameters())
        self.average: list[Tensor] = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the current weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the network, and the raw ones back on leaving."""
        raw = [p.detach().clone() for p in self.parameters]
        try:
            self._copy(self.average)
            yield
        finally:
            self._copy(raw)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
