"""Relative position bias: a learned number per head and distance, added to attention scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RelativePositionBias(nn.Module):
    """Bias (H, L) by distance i - j >= 0; distances past `max_distance` share one entry.

    As in T5 (Raffel et al., 2020) and HSTU (Zhai et al., 2024), with one entry per distance
    instead of logarithmic buckets.
    """

    def __init__(self, n_heads: int, max_distance: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(n_heads, max_distance + 1))

    def forward(self, length: int) -> Tensor:
        """Bias (H, length) of distances 0 to length - 1, in the table's dtype."""
        n_heads, size = self.table.shape
        near = self.table[:, : min(size, length)]
        far = self.table[:, -1:].expand(n_heads, length - near.shape[1])
        return torch.cat((near, far), dim=1)


def distance_bias(by_distance: Tensor, first: int, last: int, stop: int) -> Tensor:
    """Bias (H, last - first, stop) of queries [first, last) and keys [0, stop), by their distance, 0 for later keys."""
    if first == 0 and last == stop == by_distance.shape[1]:
        return by_distance_matrix(by_distance)
    return by_distance_block(by_distance, first, last, stop)


def by_distance_matrix(by_distance: Tensor) -> Tensor:
    """(H, L, L) whose entry i, j is `by_distance` (H, L) at i - j, and zero where j > i.

    Row i is one vector shifted by i. Repeating a vector of period 2L and reading it in rows of
    2L - 1 makes exactly those shifts, with a sum as its backward (gathering by distance would
    scatter L * L gradients into L entries).
    """
    n_heads, length = by_distance.shape
    future = by_distance.new_zeros(n_heads, length)
    ring = torch.cat((by_distance[:, :1], future, by_distance[:, 1:].flip(1)), dim=1)  # (H, 2L)
    shifted = ring.repeat(1, length)[:, : length * (2 * length - 1)]
    return shifted.view(n_heads, length, 2 * length - 1)[:, :, :length]


def by_distance_block(by_distance: Tensor, first: int, last: int, stop: int) -> Tensor:
    """Rows [first, last) and columns [0, stop) of `by_distance_matrix`, (H, last - first, stop)."""
    i = torch.arange(first, last, device=by_distance.device).unsqueeze(1)
    distance = i - torch.arange(stop, device=by_distance.device)
    return by_distance[:, distance.clamp(min=0)].masked_fill(distance < 0, 0)
