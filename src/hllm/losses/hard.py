"""Hard negatives: the items that the model itself takes for near to a target."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NEAREST = 32  # items that a target's hard negatives come from
SCORES = 1 << 24  # held at once while they are found


def nearest_items(vectors: Tensor, n: int = NEAREST) -> Tensor:
    """The `n` other items int32 (C, n) that score highest with each item; `vectors` float32 (C, w) as scored."""
    c = vectors.shape[0]
    found = torch.empty((c, min(n, c - 1)), dtype=torch.int32, device=vectors.device)
    for rows in torch.arange(c, device=vectors.device).split(max(1, SCORES // c)):
        scores = vectors[rows] @ vectors.T
        scores[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        found[rows] = scores.topk(found.shape[1], dim=1).indices.int()
    return found


def hard_share_of(share: np.ndarray, nearest: Tensor) -> np.ndarray:
    """Probability float64 (C,) of each item to be drawn as a neighbour of targets that come by `share` (C,)."""
    n = nearest.shape[1]
    weights = np.repeat(share / n, n)
    return np.bincount(nearest.cpu().numpy().ravel(), weights=weights, minlength=len(share))


def draw_hard(targets: Tensor, nearest: Tensor, uniform: Tensor) -> Tensor:
    """For each of K draws a target, and one of its nearest items: int64 (K,).

    targets int64 (T,) items, -1 = none; `uniform` (2, K) in [0, 1) decides. Fixed shapes, and no wait for a device.
    """
    count = (targets >= 0).cumsum(0)  # (T,)
    at = torch.searchsorted(count, (uniform[0] * count[-1]).long(), right=True)
    target = targets[at.clamp(max=len(targets) - 1)].clamp(min=0)
    return nearest[target, (uniform[1] * nearest.shape[1]).long()].long()
