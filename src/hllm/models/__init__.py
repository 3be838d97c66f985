"""User models: from item vectors and a packed batch to hidden states and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hllm.models.hllm import HLLM as HLLM

__all__ = ["HLLM"]


def __getattr__(name: str) -> Any:
    if name == "HLLM":
        from hllm.models.hllm import HLLM

        return HLLM
    raise AttributeError(f"module 'hllm.models' has no attribute {name!r}")
