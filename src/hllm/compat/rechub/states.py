"""The two states of torch-rechub that its HLLM document can mean.

`rechub` is release 0.9; `rechub-doc` is commit c712aff (2025-12-01), whose behaviour the
document describes. Classes take `state=` where the two differ.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from hllm.errors import ConfigError, unknown

State = Literal["rechub", "rechub-doc"]
STATES: tuple[State, ...] = ("rechub", "rechub-doc")
BUCKET_FNS = ("sqrt", "log")
BUCKET_UNITS = ("minutes", "seconds")


def check(kind: str, value: str, choices: Collection[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(unknown(kind, value, choices))


def check_heads(d_model: int, n_heads: int) -> None:
    """Raise ConfigError unless `d_model` splits into `n_heads` equal heads."""
    if d_model % n_heads:
        raise ConfigError(
            f"d_model={d_model} is not a multiple of n_heads={n_heads}; choose n_heads dividing it"
        )


def check_length(length: int, max_seq_len: int) -> None:
    """Raise ConfigError where a window is longer than the model's positions."""
    if length > max_seq_len:
        raise ConfigError(
            f"windows of {length} events do not fit max_seq_len={max_seq_len}; "
            f"crop them from the left, or build the model with max_seq_len={length}"
        )


def time_buckets(
    seconds: Tensor, top: int, fn: str = "sqrt", unit: str = "minutes", divisor: float = 1.0
) -> Tensor:
    """Bucket int64, shape of `seconds`: sqrt or natural log of the time, / divisor, within [0, top].

    Padding carries a difference of 0 and so shares bucket 0 with "now", as in the original.
    """
    t = seconds.float()
    if unit == "minutes":
        t = t / 60.0
    t = t.clamp(min=1e-6)
    t = torch.sqrt(t) if fn == "sqrt" else torch.log(t)
    return (t / divisor).clamp(min=0, max=top).long()


@torch.no_grad()
def reset_parameters(model: nn.Module) -> None:
    """Xavier-uniform for matrices called *weight*, zero for every other parameter with *bias* in its name.

    The second rule also catches `rel_pos_bias_table`: inside the originals' models that table
    starts at zero in both states, whatever `RelPosBias` itself starts from.
    """
    for name, parameter in model.named_parameters():
        if "weight" in name and parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif "bias" in name:
            nn.init.zeros_(parameter)
