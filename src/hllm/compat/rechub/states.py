"""The two states of torch-rechub that its HLLM document can mean.

`rechub` is release 0.9; `rechub-doc` is commit c712aff (2025-12-01), whose behaviour the
document describes. Classes take `state=` where the two differ.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from hllm.errors import ConfigError, DataError, unknown
from hllm.models.rechub import reset_parameters as reset_parameters
from hllm.models.rechub import time_buckets as time_buckets

State = Literal["rechub", "rechub-doc"]
STATES: tuple[State, ...] = ("rechub", "rechub-doc")
BUCKET_FNS = ("sqrt", "log")
BUCKET_UNITS = ("minutes", "seconds")


class SettingError(ConfigError, ValueError):
    """A setting that cannot be; a ValueError, as torch-rechub raises."""


class InputError(DataError, ValueError):
    """An input of the wrong shape or value; a ValueError, as torch-rechub raises."""


def check(kind: str, value: str, choices: Collection[str]) -> None:
    """Raise SettingError unless `value` is one of `choices`."""
    if value not in choices:
        raise SettingError(unknown(kind, value, choices))


def check_heads(d_model: int, n_heads: int) -> None:
    """Raise SettingError unless `d_model` splits into `n_heads` equal heads."""
    if d_model % n_heads:
        raise SettingError(
            f"d_model={d_model} must be divisible by n_heads; n_heads={n_heads} does not divide it"
        )


def check_length(length: int, max_seq_len: int) -> None:
    """Raise SettingError where a window is longer than the model's positions."""
    if length > max_seq_len:
        raise SettingError(
            f"seq_len={length} exceeds max_seq_len={max_seq_len}; "
            f"crop them from the left, or build the model with max_seq_len={length}"
        )
