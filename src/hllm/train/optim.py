"""The optimiser of a step, the learning-rate schedule, and the exponential moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hllm.errors import ConfigError
from hllm.items.source.ids import Ids
from hllm.items.source.live import LiveText
from hllm.train.config import TrainingConfig
from hllm.train.lazy_rows import LazyRows

BETAS, EPSILON = (0.9, 0.98), 1e-8


class LazyIds:
    """Connects an `Ids` source with its lazily updated rows: leased rows are caught up, their gradient is kept."""

    def __init__(self, ids: Ids, training: TrainingConfig) -> None:
        decay, average = training.weight_decay, training.ema_decay or None
        self.rows = LazyRows(ids.weight, BETAS, EPSILON, decay, average)
        self.weight = ids.weight
        self.weight.requires_grad_(False)  # no dense gradient, and nothing of it in the dense optimiser
        self.tokens: Tensor | None = None
        self.grad: Tensor | None = None
        self.ids = ids
        ids.on_lease, ids.on_grad = self._lease, self._take

    def release(self) -> None:
        """Leave the source as it was before, with nobody to hold the rows' moments."""
        self.ids.on_lease = self.ids.on_grad = None
        self.weight.requires_grad_(True)

    def _lease(self, tokens: Tensor) -> None:
        # Padding's row is no item's: where fixed shapes leave entries unused, they name it.
        self.rows.lease(tokens, tokens > 0)

    def _take(self, tokens: Tensor, grad: Tensor) -> None:
        self.tokens, self.grad = tokens, grad

    def step(self, rate: float) -> None:
        """Update the rows that have a gradient; every step counts, also one without any."""
        if self.tokens is None or self.grad is None:
            self.tokens = torch.zeros(0, dtype=torch.long, device=self.weight.device)
            self.grad = self.weight.new_zeros(0, self.weight.shape[1])
        self.rows.step(self.tokens, self.grad, rate, self.tokens > 0)
        self.tokens = self.grad = None


class Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) over a network's weights, dense and by rows, behind one gradient clip.

    Vectors and scalars (norms, biases, temperature) do not decay. `optimizer="adam"`: Adam as torch-rechub uses it,
    weight decay a penalty on every weight. `lazy`: id embeddings are updated by rows (train/lazy_rows.py).
    Item LLM and user model may have rates and decays of their own; all follow the one schedule.
    """

    def __init__(self, network: nn.Module, training: TrainingConfig, lazy: bool = False) -> None:
        ids = [module for module in network.modules() if isinstance(module, Ids)] if lazy else []
        self.lazy = [LazyIds(part, training) for part in ids]
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        device = next(network.parameters()).device
        cuda = device.type == "cuda"
        self.capturable = cuda and not self.lazy
        # On CUDA the rate lives in a tensor, so that a captured step sees it change.
        rate = torch.tensor(training.learning_rate, device=device) if cuda else training.learning_rate
        self.rate = training.learning_rate
        groups = [
            {**group, "lr": torch.tensor(group["lr"], device=device) if cuda else group["lr"]}
            for group in parameter_groups(network, self.parameters, training)
        ]
        self.shares = [float(group["lr"]) / training.learning_rate for group in groups]
        self.dense: torch.optim.Optimizer
        if training.optimizer == "adam":
            self.dense = torch.optim.Adam(groups, lr=rate, fused=True, capturable=cuda)
        elif training.optimizer == "adamw8bit":
            self.dense, self.capturable = _adamw_8bit(groups, training.learning_rate, device), False
        else:
            self.dense = torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True, capturable=cuda)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate; components with one of their own follow in proportion."""
        self.rate = rate
        for group, share in zip(self.dense.param_groups, self.shares, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * share)
            else:
                group["lr"] = rate * share

    def release(self) -> None:
        """End training: the network holds nothing of the optimiser any more."""
        self.zero_grad()
        for part in self.lazy:
            part.release()

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """All of a parameter, also where ranks hold parts of it: then every rank has to ask."""
        return whole(parameter.detach())

    def put(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set all of a parameter, on every rank, to `value`."""
        put(parameter.detach(), value)

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """Of all of a parameter."""
        return parameter.shape

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What the optimiser keeps of a parameter, by name, whole."""
        # 8-bit states count in integers.
        kept = self.dense.state.get(parameter, {})
        return {key: whole(torch.as_tensor(value)) for key, value in kept.items()}

    def put_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Set what the optimiser keeps of a parameter."""
        # AdamW's fused form wants its step counters beside the weights.
        device = parameter.device
        if key == "step" and not value.is_floating_point():
            self.dense.state[parameter][key] = int(value)
        elif value.ndim == parameter.ndim and value.shape == parameter.shape and is_spread(parameter):
            like = torch.zeros_like(parameter.detach())
            put(like, value)
            self.dense.state[parameter][key] = like
        else:
            self.dense.state[parameter][key] = value.to(device)

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        self.dense.zero_grad(set_to_none=True)

    def step(self, grad_clip: float | None) -> None:
        """Clip the norm of all gradients to `grad_clip` (None: as they are), and update."""
        if grad_clip is not None:
            self._clip(grad_clip)
        self.dense.step()
        for part in self.lazy:
            part.step(self.rate)

    def _clip(self, limit: float) -> None:
        grads = [p.grad for p in self.parameters if p.grad is not None]
        grads += [part.grad for part in self.lazy if part.grad is not None]
        spread = [grad for grad in grads if is_spread(grad)]
        if spread:
            plain = [grad for grad in grads if not is_spread(grad)]
            norms = [whole(torch.nn.utils.get_total_norm(some)) for some in (spread, plain) if some]
            norm = torch.linalg.vector_norm(torch.stack(norms))
            grads = [*(grad.to_local() for grad in spread), *plain]  # type: ignore[attr-defined]
        else:
            norm = torch.nn.utils.get_total_norm(grads)
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)


def parameter_groups(
    network: nn.Module, parameters: Sequence[nn.Parameter], training: TrainingConfig
) -> list[dict[str, Any]]:
    """Groups `params`, `lr`, `weight_decay` of the item LLM, the user model and the rest; only AdamW spares
    vectors and scalars from decay."""
    rates = {
        "item": (training.item_llm_learning_rate, training.item_llm_weight_decay),
        "user": (training.user_learning_rate, training.user_weight_decay),
        "rest": (None, None),
    }
    owner = {
        id(p): "item" for m in network.modules() if isinstance(m, LiveText) for p in m.encoder.parameters()
    }
    user_model = getattr(getattr(network, "model", None), "user_model", None)
    if isinstance(user_model, nn.Module):
        owner |= {id(p): "user" for p in user_model.parameters()}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}  # parts of ranks are updated apart
    for p in parameters:
        rate, decay = rates[owner.get(id(p), "rest")]
        decay = training.weight_decay if decay is None else decay
        if p.ndim < 2 and training.optimizer != "adam":
            decay = 0.0
        groups.setdefault((rate or training.learning_rate, decay, is_spread(p)), []).append(p)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay, _), params in groups.items()]


def is_spread(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor, of which a rank holds a part."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, also of a DTensor, of which every rank has to ask at the same time."""
    full: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return full


def put(tensor: Tensor, value: Tensor) -> None:
    """Copy `value`, the same on every rank, into `tensor`, of a DTensor this rank's part of it."""
    if is_spread(tensor):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        value = distribute_tensor(value.to(tensor.device, tensor.dtype), mesh, placements)
    tensor.copy_(value)


def _adamw_8bit(groups: list[dict[str, Any]], rate: float, device: torch.device) -> torch.optim.Optimizer:
    """AdamW with moments in blocks of 8 bits (Dettmers et al., 2022)."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as err:
        raise ConfigError("optimizer=adamw8bit needs the package bitsandbytes; use optimizer=adamw") from err
    if device.type != "cuda":
        raise ConfigError(f"optimizer=adamw8bit runs on a GPU, not on {device}; use optimizer=adamw")
    optimizer: torch.optim.Optimizer = AdamW8bit(
        [{**group, "lr": float(group["lr"])} for group in groups], lr=rate, betas=BETAS
    )
    return optimizer


def learning_rate(training: TrainingConfig, progress: float) -> float:
    """Rate after a share `progress` in [0, 1] of training: linear warm-up, then a cosine.

    A function of the share, not of a step count, since token-budget epochs differ by a step or two.
    """
    if progress < training.warmup_ratio:
        return training.learning_rate * max(progress, 1e-3) / training.warmup_ratio
    share = (progress - training.warmup_ratio) / max(1e-9, 1 - training.warmup_ratio)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return training.learning_rate * (training.min_lr_ratio + (1 - training.min_lr_ratio) * cosine)


class WeightAverage:
    """Exponential moving average of the trained weights, with a warm-up so that early steps do not linger.

    The decay of step n is min(decay, (1 + n) / (10 + n)). Averaged weights are what is validated,
    saved and used; the raw ones go on training. Rows that are updated lazily keep their own average.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = list(parameters)
        self.average: list[Tensor] = [p.detach().clone() for p in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the current weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)


@contextmanager
def evaluation_weights(average: WeightAverage | None, optimizer: Optimizer) -> Iterator[None]:
    """Put the weights to validate and keep into the network, averaged and caught up; the raw ones back on leaving.

    Memory is exchanged, not copied. What `optimizer.lazy` has in the network is then its own; the rest is `average`'s.
    """
    swaps: list[tuple[nn.Parameter, Tensor]] = []
    if average is not None:
        swaps += zip(average.parameters, average.average, strict=True)
    for part in optimizer.lazy:
        swaps.append((part.weight, part.rows.caught_up(average=part.rows.average is not None)))
    raw = [parameter.data for parameter, _ in swaps]
    try:
        for parameter, value in swaps:
            parameter.data = value
        yield
    finally:
        for (parameter, _), value in zip(swaps, raw, strict=True):
            parameter.data = value
