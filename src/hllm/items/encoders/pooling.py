"""From the hidden states of a text's tokens to one vector, never reading a padded position."""

from __future__ import annotations

import torch
from torch import Tensor

from hllm.items.encoders.kinds import POOLINGS


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """One float32 vector (n, d) per text from `hidden` (n, length, d).

    `mask` (n, length) is true at real tokens, of which every text has at least one. The padding
    may be on either side, or on both. "last" reads the last real token, "mean" averages all of them.
    """
    mask = mask.bool()
    if how == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), last_real(mask)].float()
    if how == "mean":
        # `where`, not a product: a NaN computed at a padded position must not reach the sum.
        real = torch.where(mask.unsqueeze(-1), hidden.float(), 0.0)
        return real.sum(1) / mask.sum(1, keepdim=True)
    raise ValueError(f"pooling {how!r} is none of {POOLINGS}")


def last_real(mask: Tensor) -> Tensor:
    """Index int64 (n,) of the last true position of each row of `mask` (n, length)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, positions, -1).amax(1)
