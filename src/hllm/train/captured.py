"""A training step captured once as a CUDA graph, and replayed.

A step of these models is some two thousand small kernels; launching them one by one takes a GPU several times longer
than running them. Batches are padded to one shape (`packing.padded`), what a step reads is copied into tensors at
fixed addresses, and every later step is a single launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hllm.data.batches.training import TrainLoader
from hllm.errors import TrainingError
from hllm.models.attention import MASK_ENTRIES
from hllm.packing import Batch, ItemView, make_rows, one_row, padded
from hllm.train.compiled import CompiledBlocks
from hllm.train.step import Step, TrainStep

SPARE_ROWS = 1.15  # rows per batch over the least possible number, for what does not fit together
WARMUP_STEPS = 3  # ordinary steps before capture, so that lazily made state exists


class PaddedShape:
    """The one shape of a training's batches, or of the parts that `world` ranks take of them: T tokens, in B rows of
    R slots; `by_bounds`, in a single row of T. `n_events`: tokens of a whole batch."""

    def __init__(self, loader: TrainLoader, world: int = 1, by_bounds: bool = False) -> None:
        longest = loader.longest_window()
        self.by_bounds = by_bounds
        self.row = -(-longest // 16) * 16
        self.n_events = max(loader.batch_tokens, longest)
        # A part is cut between windows, at the nearest to its share.
        self.n_tokens = self.n_events if world == 1 else -(-self.n_events // world) + longest
        # A row may hold one longest window only, however much room that leaves.
        self.n_rows = int(self.n_tokens / min(self.row / SPARE_ROWS, longest)) + 2

    def fits_a_mask(self, n_heads: int) -> bool:
        """Whether attention holds the mask of such a batch whole, or needs none; blocks of it are not captured."""
        return self.by_bounds or self.n_rows * n_heads * self.row**2 <= MASK_ENTRIES

    def pad(self, batch: Batch) -> Batch | None:
        """`batch` in this shape; None for an unlucky mix of lengths that does not fit."""
        if self.by_bounds:
            return padded(batch, self.n_tokens, one_row(batch, self.n_tokens, self.row))
        try:
            rows = make_rows(batch, self.row, self.n_rows)
        except ValueError:
            return None
        return padded(batch, self.n_tokens, rows)


class Captured:
    """A function of tensors in a fixed structure, run `WARMUP_STEPS` times, then captured and replayed.

    compiled  blocks that it runs compiled, or None

    Arguments are tensors, and dataclasses and dictionaries of them. Every tensor of a later call is copied into the
    first call's; TrainingError names one that is new, missing or of another shape, and a plain value that changed.
    """

    def __init__(
        self, function: Callable[..., Tensor], device: torch.device, compiled: CompiledBlocks | None = None
    ) -> None:
        self.function = function if compiled is None else partial(compiled.run, function)
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.static: tuple[Any, ...] = ()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Tensor | None = None
        self.warm = 0

    def __call__(self, *arguments: Any) -> Tensor:
        with torch.cuda.device(self.device):
            if self.warm == 0:
                self.static = tuple(cloned(a) for a in arguments)
            else:
                copy_into(self.static, arguments)
            if self.warm < WARMUP_STEPS:
                self.warm += 1
                return self._on_side_stream()
            if self.graph is None:
                self.graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.graph):
                    self.result = self.function(*self.static)
            self.graph.replay()
            assert self.result is not None
            return self.result.clone()

    def _on_side_stream(self) -> Tensor:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self.function(*self.static)
        current.wait_stream(self.stream)
        return result


class CapturedUserHalf:
    """The user half of a step, for sources whose own part cannot be captured: vectors in, their gradient out."""

    def __init__(self, step: TrainStep, n_tokens: int, compiled: CompiledBlocks | None = None) -> None:
        self.eager = step.user_half
        self.n_tokens = n_tokens
        self.parameters = [p for p in step.network.model.parameters() if p.requires_grad]
        self.captured = Captured(self._run, step.device, compiled)
        self.grads: list[Tensor | None] = []

    def __call__(self, batch: Batch, view: ItemView, vectors: Tensor) -> Tensor:
        if batch.n_tokens != self.n_tokens:  # an unlucky mix of lengths: right, only slower
            return self.eager(batch, view, vectors)
        loss = self.captured(batch, view, vectors)
        # A replay writes where the captured backward wrote, whatever the parameters point at by now.
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        vectors.grad = self.captured.static[2].grad
        return loss

    def _run(self, batch: Batch, view: ItemView, vectors: Tensor) -> Tensor:
        for tensor in (*self.parameters, vectors):
            tensor.grad = None
        loss = self.eager(batch, view, vectors)
        self.grads = [p.grad for p in self.parameters]
        return loss


class CapturedStep:
    """A whole step, source and optimiser included."""

    def __init__(self, step: TrainStep, n_tokens: int, compiled: CompiledBlocks | None = None) -> None:
        self.step = step
        self.n_tokens = n_tokens
        self.captured = Captured(step, step.device, compiled)

    def __call__(self, batch: Batch, view: ItemView) -> Tensor:
        if batch.n_tokens != self.n_tokens:
            return self.step(batch, view)
        return self.captured(batch, view)


def capture(step: TrainStep, n_tokens: int, compiled: CompiledBlocks | None = None) -> Step:
    """`step` captured for batches of `n_tokens` tokens: whole where the source and optimiser have fixed shapes."""
    if step.network.source.static and step.optimizer.capturable:
        return CapturedStep(step, n_tokens, compiled)
    step.half = CapturedUserHalf(step, n_tokens, compiled)
    return step


def cloned(value: Any) -> Any:
    """`value` with every tensor in it copied to memory of its own."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: cloned(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: cloned(getattr(value, f.name)) for f in fields(value)})
    return value


def copy_into(static: Any, given: Any, name: str = "step") -> None:
    """Copy every tensor of `given` into its counterpart in `static`. Raises TrainingError where they differ."""
    if isinstance(static, Tensor) and isinstance(given, Tensor):
        if static.shape != given.shape or static.dtype != given.dtype:
            raise TrainingError(
                f"{name} is {given.dtype} {tuple(given.shape)}, but the captured step has {static.dtype} "
                f"{tuple(static.shape)}; train with --no-capture"
            )
        with torch.no_grad():
            static.copy_(given)
    elif isinstance(static, dict) and isinstance(given, dict) and static.keys() == given.keys():
        for key, item in static.items():
            copy_into(item, given[key], f"{name}.{key}")
    elif isinstance(static, tuple) and isinstance(given, tuple):
        for old, new in zip(static, given, strict=True):
            copy_into(old, new, type(old).__name__)
    elif is_dataclass(static) and type(static) is type(given):
        for f in fields(static):
            # The host's own record of lengths never enters a kernel.
            if f.name != "host_lengths":
                copy_into(getattr(static, f.name), getattr(given, f.name), f"{name}.{f.name}")
    elif isinstance(static, Tensor) or isinstance(given, Tensor) or static != given:
        raise TrainingError(
            f"{name} is {given!r:.80}, but the captured step has {static!r:.80}; train with --no-capture"
        )
