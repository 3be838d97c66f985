"""Triton kernels of our own, for NVIDIA GPUs. What they compute, plain torch computes elsewhere, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec

import torch

_wanted = ContextVar("kernels", default=True)


def usable(device: torch.device) -> bool:
    """Whether kernels may run on `device`: a CUDA device, with Triton installed, and not within `switched(False)`."""
    return device.type == "cuda" and _wanted.get() and find_spec("triton") is not None


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """Kernels as they are wanted: `on` or plain torch everywhere."""
    token = _wanted.set(on and _wanted.get())
    try:
        yield
    finally:
        _wanted.reset(token)
