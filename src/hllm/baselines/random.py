"""Random order: what a model gets that knows nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.packing import Batch

# Odd multipliers and the finaliser of SplitMix64 (Steele et al., 2014), as signed 64-bit numbers.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


class Random(nn.Module):
    """score(user, item) = a hash of seed, user and item in [0, 1): the same on every machine and run."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))

    def fit(self, dataset: Dataset) -> Random:
        """There is nothing to learn."""
        return self

    def query(self, batch: Batch) -> Tensor:
        """A hash int64 (U,) of each user's row."""
        return _mix(_mix(self.get_buffer("seed")) + batch.users)

    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m), uniform over the multiples of 2**-24."""
        bits = _mix(query.unsqueeze(1) + tokens)
        return _shift(bits, 40).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """SplitMix64 of int64 numbers; products wrap around, as they should."""
    x = x * GOLDEN
    x = (x ^ _shift(x, 30)) * MIX[0]
    x = (x ^ _shift(x, 27)) * MIX[1]
    return x ^ _shift(x, 31)


def _shift(x: Tensor, n: int) -> Tensor:
    """Right shift that fills with zeros; torch's repeats the sign."""
    return (x >> n) & ((1 << (64 - n)) - 1)
