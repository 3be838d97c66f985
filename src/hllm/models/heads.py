"""Scorers: from hidden states and item vectors to scores."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineScorer(nn.Module):
    """score = cos(hidden, item) / temperature, the temperature learned and bounded below by 0.01.

    The two sides are normalised apart, so a tile of scores is one matrix product:
    `query(hidden) @ item(vectors).T`. The bound is CLIP's (Radford et al., 2021).
    """

    MAX_SCALE = 100.0

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def query(self, hidden: Tensor) -> Tensor:
        """Hidden states (n, d) to queries (n, d), float32 or wider, scaled by 1 / temperature."""
        scale = self.log_scale.clamp(max=math.log(self.MAX_SCALE)).exp()
        return F.normalize(_at_least_float32(hidden), dim=-1) * scale

    def item(self, vectors: Tensor) -> Tensor:
        """Item vectors (m, d) to unit vectors (m, d), float32 or wider."""
        return F.normalize(_at_least_float32(vectors), dim=-1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
