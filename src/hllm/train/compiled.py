"""A user model's blocks compiled by `torch.compile`, inside the captured step alone.

A block is a dozen small kernels (norms, gates, residuals, dropout, the bias written out) around a few matrix products;
compiled, neighbours among them become one. Blocks of one kind share their compiled code. Only the captured step runs
them so: it has one shape, while validation and rare batches that do not fit it would be compiled anew for each of
theirs. Compiled code is kept by torch from one process to the next (`TORCHINDUCTOR_CACHE_DIR`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hllm import kernels
from hllm.data.batches.training import TrainLoader
from hllm.hardware import is_out_of_memory
from hllm.models.hllm import HLLM, Network
from hllm.models.user_models import attends_by_bounds
from hllm.packing import Batch, one_row
from hllm.train.config import Runtime, TrainingConfig, chosen
from hllm.train.step import autocast, use_bf16

# Tokens x layers x width of a training from which compiling pays for itself about twice: on an H100, 60 epochs of
# MovieLens-1M, 7 x 10^10, take 6 s less after 14 s of compiling (benchmarks/results/window_h100.json).
WORTH = 25 * 10**10


class CompiledBlocks:
    """Runs functions with `parts`, modules and the names of their methods, compiled; as they are, once that has failed.

    seconds  what the first run took, nearly all of it compiling; None before
    """

    def __init__(self, parts: Sequence[tuple[nn.Module, str]]) -> None:
        self.parts = list(parts)
        self.forms = [torch.compile(getattr(module, name), dynamic=False) for module, name in self.parts]
        self.seconds: float | None = None
        self.failed = False

    def run(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """`function(*arguments)` by compiled blocks. What fails to compile is run again plainly, and said once."""
        if self.failed or self.seconds is not None:
            with self._in_place():
                return function(*arguments)
        started = time.monotonic()
        try:
            with self._in_place():
                result = function(*arguments)
        except Exception as err:  # compilers raise whatever they like
            if is_out_of_memory(err):
                raise
            self.failed = True
            reason = (str(err).strip() or type(err).__name__).splitlines()[0]
            warnings.warn(f"blocks are not compiled, training goes on without: {reason:.200}", stacklevel=2)
            return function(*arguments)
        self.seconds = time.monotonic() - started
        return result

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        parts = [] if self.failed else self.parts
        for (module, name), form in zip(parts, self.forms, strict=False):
            setattr(module, name, form)
        try:
            yield
        finally:
            for module, name in parts:
                delattr(module, name)  # the class's own again


def kernels_work(network: Network, device: torch.device, runtime: Runtime) -> bool:
    """Whether the user model's attention goes by kernels of ours on `device`: in bf16, where they work.

    That is tried on a few tokens, forward and backward, which compiles them, too; Triton keeps them from one process
    to the next. What does not work is said once, and training goes on without.
    """
    user_model: Any = network.model.user_model
    narrow = use_bf16(runtime, device)
    by_bounds = attends_by_bounds(user_model, network.source.width)
    if not (runtime.kernels and narrow and by_bounds and kernels.usable(device)):
        return False
    parameters = [p for p in user_model.parameters() if p.requires_grad]
    t = 64
    few = torch.arange(t)
    batch = Batch(few[:1], few, few, few, torch.tensor([0, t], dtype=torch.int32))
    try:
        with torch.random.fork_rng([device]), autocast(runtime, device):
            x = torch.randn(t, network.source.width, device=device)
            rows = one_row(batch, t, t).to(device)
            hidden = user_model(x, rows, batch.to(device).signals)
            torch.autograd.grad(hidden.float().sum(), parameters, allow_unused=True)
            torch.cuda.synchronize(device)
    except Exception as err:  # compilers raise whatever they like
        if is_out_of_memory(err):
            raise
        reason = (str(err).strip() or type(err).__name__).splitlines()[0]
        warnings.warn(f"attention goes without its kernels: {reason:.200}", stacklevel=4)
        return False
    return True


def blocks_of(user_model: object) -> list[nn.Module]:
    """The blocks that a user model runs one after the other; none where it names none."""
    return list(getattr(user_model, "blocks", ()))


def parts_of(model: HLLM) -> list[tuple[nn.Module, str]]:
    """What of a model is compiled: its blocks, and the norms and scalings before and after them."""
    user_model: Any = model.user_model
    around = [(user_model, "enter"), (getattr(user_model, "norm", None), "forward")]
    around += [(model.scorer, "query"), (model.scorer, "item")]
    return [(block, "forward") for block in blocks_of(user_model)] + [
        (module, name) for module, name in around if hasattr(module, name)
    ]


def is_worth_compiling(loader: TrainLoader, training: TrainingConfig, n_layers: int, width: int) -> bool:
    """Whether a training is so long that faster steps make up for compiling, by a wide margin."""
    lengths = np.diff(np.asarray(loader.histories.offsets)) - 1
    tokens = int(np.minimum(lengths, loader.max_len or lengths.max(initial=0)).sum())
    return tokens * loader.passes * chosen(training.epochs) * n_layers * width > WORTH
