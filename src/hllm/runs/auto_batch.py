"""A batch that fits into memory: tried in halves, named or taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from hllm.config import Config
from hllm.errors import DeviceError
from hllm.hardware import is_out_of_memory, release_memory
from hllm.runs.settle import settled
from hllm.settings import heads_of
from hllm.train.config import chosen

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings

T = TypeVar("T")
GIB = 2**30
PROBE_STEPS = 5  # on a GPU the first steps run before the graph is captured, which takes memory too


@dataclass(frozen=True)
class BatchSize:
    """A batch size as a user gives it, and what to do where it does not fit.

    size    in the user's unit, which is `tokens` targets
    auto    take the largest half, quarter, ... that fits, instead of naming it in an error
    option  how the user sets a size, with {} for it
    advice  what else saves memory
    say     told when a smaller size is taken
    """

    size: int
    auto: bool
    say: Callable[[str], None]
    option: str = "--set batch_tokens={}"
    tokens: int = 1
    advice: str = "a smaller max_len or d_model, or --device cpu"

    def config(self, config: Config, size: int) -> Config:
        """`config` with a batch of `size`: what a run of that size records."""
        return config.model_copy(update={"batch_tokens": size * self.tokens})

    def as_recorded(
        self, folder: Path, data: Dataset, config: Config, embeddings: ItemEmbeddings | None
    ) -> BatchSize:
        """The batch with the size that the run in `folder` had found to fit, if it is otherwise this run."""
        from hllm.runs.folder import saved_identity
        from hllm.runs.record import identity_of

        saved = saved_identity(folder) if self.auto else None
        for half in range(self.size.bit_length()) if saved is not None else ():
            if saved == identity_of(data, self.config(config, self.size >> half), embeddings):
                return replace(self, size=self.size >> half)
        return self


def with_fitting_batch(work: Callable[[int], T], probe: Callable[[int], object], batch: BatchSize) -> T:
    """`work(batch.size)`; where memory runs out, with the largest half, quarter, ... for which `probe` runs.

    `probe(size)` takes a few steps with a batch of that size; where the whole work needs more than
    they did, the next size has its turn. Raises DeviceError without `batch.auto`, naming the size that
    fits, and where none does.
    """
    size = batch.size
    while True:
        try:
            return work(size)
        except (RuntimeError, MemoryError) as err:
            if not is_out_of_memory(err):
                raise
        release_memory()
        tried, size = size, size // 2
        while size and not fits(lambda size=size: probe(size)):  # type: ignore[misc]
            size //= 2
        asked = f"out of memory with {batch.option.format(tried)}"
        if not size:
            raise DeviceError(f"{asked}, and with a batch of 1 as well; use {batch.advice}")
        if not batch.auto:
            raise DeviceError(
                f"{asked}; {size} fits: type {batch.option.format(size)}, or --auto-batch to have it taken; "
                f"else {batch.advice}"
            )
        batch.say(f"{asked}; going on with {size}, which fits")


def fits(step: Callable[[], object]) -> bool:
    """Whether `step` runs without running out of memory; what it allocated is given back."""
    try:
        step()
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        return False
    finally:
        release_memory()
    return True


def probe(data: Dataset, config: Config, embeddings: ItemEmbeddings | None, device: torch.device) -> None:
    """A few training steps, to see whether they fit; RuntimeError or MemoryError where they do not."""
    from hllm.runs.train import make_trainer

    make_trainer(data, data.train_histories(), config, embeddings, device, None, False).probe(PROBE_STEPS)


def memory_needed(data: Dataset, config: Config, embeddings: ItemEmbeddings | None) -> float:
    """Bytes, roughly, of one training step: enough to warn by.

    Weights with gradients and Adam's moments, two tables of item vectors, about 40 numbers of the
    model's width a token and layer for the backward pass, attention's weights, and the loss's tiles.
    """
    users, training = config.users, settled(data, config).training
    width = users.d_model or (0 if embeddings is None else embeddings.vectors.shape[1])
    max_len = training.max_len if isinstance(training.max_len, int) else int(np.diff(data.offsets).max())
    n_tokens = max(chosen(training.batch_tokens), max_len)
    n_weights = 12 * width**2 * users.n_layers + (max_len + 2049) * width
    attention = 3 * heads_of(width, users.n_heads) * max_len
    activations = n_tokens * users.n_layers * (40 * width + attention)
    tiles = 3 * n_tokens * min(data.n_catalogue, 65_536)
    return 4.0 * (4 * n_weights + 2 * data.n_catalogue * width + activations + tiles)


def memory_warning(device: torch.device, needed: float, advice: str) -> str | None:
    """What to say where a GPU may have too little free memory for `needed` bytes; None elsewhere."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    if needed <= free:
        return None
    return (
        f"about {needed / GIB:.1f} GiB of GPU memory are needed, but {free / GIB:.1f} of {total / GIB:.1f} GiB "
        f"are free; if it runs out: {advice}"
    )
