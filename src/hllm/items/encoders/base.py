"""What every item encoder offers."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


class Encoder(Protocol):
    """`prepare` sees the texts once; `encode` then returns the vectors of some of them."""

    dim: int
    truncated: np.ndarray  # bool (n,): prepared texts that were cut to max_tokens
    budget: int | None  # tokens of a batch, where batches are best counted in tokens

    def prepare(self, texts: list[str]) -> np.ndarray:
        """Take in all texts; return the length int64 (n,) of each, for batching."""

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Vectors float32 (m, dim) of the prepared texts `rows` int64 (m,), one batch."""


@runtime_checkable
class Tokenising(Protocol):
    """An encoder that need not see all texts at once; a thread may tokenise some while it encodes others."""

    def tokenise(self, texts: list[str]) -> Any:
        """The tokens of `texts`; changes nothing that `encode` reads."""

    def take(self, tokens: Any) -> np.ndarray:
        """Make `tokens` those that `encode` reads; return the length int64 (n,) of each text, as `prepare` does."""
