"""Scorers: from hidden states and item vectors to scores.

The two sides are prepared apart, so a tile of scores is one matrix product:
`query(hidden) @ item(vectors).T`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.models.config import ScorerConfig


class CosineScorer(nn.Module):
    """score = cos(hidden, item) / temperature; a learned one stays between 0.01 and 1.

    The lower bound is CLIP's (Radford et al., 2021), both are ByteDance's.
    """

    MAX_SCALE = 100.0

    def __init__(self, temperature: float, learn: bool = True) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learn)

    def query(self, hidden: Tensor) -> Tensor:
        """Hidden states (n, d) to queries (n, d), float32 or wider, scaled by 1 / temperature."""
        scale: Tensor = self.log_scale
        if scale.requires_grad:
            scale = scale.clamp(0.0, math.log(self.MAX_SCALE))
        return F.normalize(_at_least_float32(hidden), dim=-1) * scale.exp()

    def item(self, vectors: Tensor) -> Tensor:
        """Item vectors (m, d) to unit vectors (m, d), float32 or wider."""
        return F.normalize(_at_least_float32(vectors), dim=-1)


class DotScorer(nn.Module):
    """score = hidden . item / temperature, nothing normalised, nothing learned."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def query(self, hidden: Tensor) -> Tensor:
        """Hidden states (n, d) to queries (n, d), float32 or wider, divided by the temperature."""
        return _at_least_float32(hidden) / self.temperature

    def item(self, vectors: Tensor) -> Tensor:
        """Item vectors (m, d) as they are, float32 or wider."""
        return _at_least_float32(vectors)


def make_scorer(config: ScorerConfig) -> CosineScorer | DotScorer:
    """The scorer that `config` asks for."""
    if config.scorer == "dot":
        return DotScorer(config.temperature)
    return CosineScorer(config.temperature, config.learn_temperature)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
