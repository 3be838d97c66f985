"""Memory: what a training step needs, and what to do where it runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hllm.compat.scripts.entry import warn
from hllm.errors import DeviceError
from hllm.hardware import is_out_of_memory, release_memory

T = TypeVar("T")
ADVICE = "a smaller --max_seq_len, a smaller --model_type, or --device cpu"


def packed_memory(
    n_tokens: int, n_items: int, d_model: int, n_layers: int, n_heads: int, max_len: int
) -> float:
    """Bytes, roughly, of one training step of the packed model: enough to warn by.

    Weights with gradients and Adam's moments, two tables of item vectors, about 40 numbers of the
    model's width a token and layer for the backward pass, attention's weights, and the loss's tiles.
    """
    n_weights = 12 * d_model**2 * n_layers + (max_len + 2049) * d_model
    activations = n_tokens * n_layers * (40 * d_model + 3 * n_heads * max_len)
    tiles = 3 * n_tokens * min(n_items, 65_536)
    return 4.0 * (4 * n_weights + 2 * n_items * d_model + activations + tiles)


def padded_memory(batch: int, max_len: int, n_items: int, d_model: int, n_layers: int, n_heads: int) -> float:
    """The same for a padded model that holds the scores of every item at every position."""
    scores = 4 * batch * max_len * n_items
    activations = batch * max_len * n_layers * (20 * d_model + 4 * n_heads * max_len)
    return 4.0 * (scores + activations + 4 * n_items * d_model)


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


def with_fitting_batch(
    work: Callable[[int], T], probe: Callable[[int], object], batch_size: int, auto: bool
) -> T:
    """`work(batch_size)`; where memory runs out, with the largest half, quarter, ... for which `probe` runs.

    Without `auto` DeviceError names that size instead. `probe(size)` takes a few steps with a batch of
    that size; where the whole work needs more than they did, the next size has its turn.
    """
    size = batch_size
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
        if not size:
            raise DeviceError(f"out of memory, with a batch of 1 as well; use {ADVICE}")
        if not auto:
            raise DeviceError(
                f"out of memory with --batch_size {tried}; {size} fits: type --batch_size {size}, or "
                f"--auto-batch to have it taken; else {ADVICE}"
            )
        warn(f"out of memory with --batch_size {tried}; going on with {size}, which fits")
