"""From the hidden states of a text's tokens to one vector, never reading a padded position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hllm.errors import ConfigError

_POOLINGS = ("mean", "last", "cls", "weighted-mean")


def pool(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """One float32 vector (n, d) per text from `hidden` (n, length, d).

    `mask` (n, length) is true at real tokens, of which every text has at least one. The padding
    may be on either side, or on both. "last" and "cls" read the last and the first real token, "mean"
    averages all of them, "weighted-mean" with weights 1, 2, 3, ... (SGPT; Muennighoff, 2022).
    """
    mask = mask.bool()
    rows = torch.arange(len(hidden), device=hidden.device)
    if how == "last":
        return hidden[rows, last_real(mask)].float()
    if how == "cls":
        return hidden[rows, mask.long().argmax(1)].float()
    if how not in _POOLINGS:
        raise ValueError(f"pooling {how!r} is none of {_POOLINGS}")
    # `where`, not a product: a NaN computed at a padded position must not reach the sum.
    real = torch.where(mask.unsqueeze(-1), hidden.float(), 0.0)
    if how == "mean":
        return real.sum(1) / mask.sum(1, keepdim=True)
    weights = mask.cumsum(1) * mask
    return (real * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)


def last_real(mask: Tensor) -> Tensor:
    """Index int64 (n,) of the last true position of each row of `mask` (n, length)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, positions, -1).amax(1)


def states_of(output: Any, layers: str) -> Tensor:
    """The states (..., d) that are pooled, from a model's output.

    `layers`: "" for the last layer's after the final norm; "K" for those after block K (0: the input
    embeddings; -1: the last), "lastN" for the mean of the last N, for which the output must hold
    `hidden_states`. Raises ConfigError for a layer that the model does not have.
    """
    if not layers:
        return output.last_hidden_state
    return of_layers(None, output.hidden_states, layers)


def of_layers(last: Any, every: Sequence[Tensor], layers: str) -> Tensor:
    """As `states_of`: `last` for "", else some of `every` layer's states, the input embeddings first."""
    if not layers:
        return last
    if layers.startswith("last"):
        n = int(layers.removeprefix("last"))
        if n <= len(every):
            return torch.stack([h.float() for h in every[-n:]]).mean(0).to(every[-1].dtype)
    elif -len(every) <= int(layers) < len(every):
        return every[int(layers)]
    blocks = len(every) - 1
    raise ConfigError(
        f"pooling @{layers}: the model has {blocks} blocks; valid: @0 to @{blocks}, counted from the end @-1 to "
        f"@-{blocks + 1}, @last1 to @last{blocks + 1}"
    )
