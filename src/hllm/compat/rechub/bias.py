"""Relative biases of attention scores, and the mask of items that may not be recommended."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hllm.compat.rechub.states import (
    BUCKET_FNS,
    BUCKET_UNITS,
    STATES,
    InputError,
    SettingError,
    State,
    check,
    check_length,
    time_buckets,
)

MASKED = -1e9  # score of what may not be recommended


class RelPosBias(nn.Module):
    """Learned bias per head and bucket of |i - j|, buckets spaced evenly over max_seq_len.

    `forward(L)` gives (1, H, L, L). The table starts uniform within ±sqrt(1 / num_buckets);
    `state="rechub-doc"`: normal with standard deviation 1.
    """

    def __init__(
        self, n_heads: int, max_seq_len: int, num_buckets: int = 32, *, state: State = "rechub"
    ) -> None:
        super().__init__()
        check("state", state, STATES)
        self.n_heads, self.max_seq_len, self.num_buckets = n_heads, max_seq_len, num_buckets
        if state == "rechub-doc":
            table = torch.randn(num_buckets, n_heads)
        else:
            bound = math.sqrt(1.0 / num_buckets)
            table = torch.empty(num_buckets, n_heads).uniform_(-bound, bound)
        self.rel_pos_bias_table = nn.Parameter(table)

    def forward(self, seq_len: int) -> Tensor:
        position = torch.arange(seq_len, device=self.rel_pos_bias_table.device)
        distance = (position[None, :] - position[:, None]).abs().clamp(max=self.max_seq_len)  # (L, L)
        bucket = distance * (self.num_buckets - 1) // self.max_seq_len
        return self.rel_pos_bias_table[bucket].permute(2, 0, 1).unsqueeze(0)  # (1, H, L, L)


class RelativeBucketedTimeAndPositionBias(nn.Module):
    """HSTU's bias of Eq. 3 (Zhai et al., 2024): one table over i - j, one over bucketed |t_i - t_j|.

    `forward(time_diffs=(B, L) seconds before one anchor)` gives (B, H, L, L); with `seq_len`
    alone, positions only: (1, H, L, L).
    """

    def __init__(
        self,
        n_heads: int,
        max_seq_len: int,
        num_time_buckets: int = 128,
        time_bucket_fn: str = "sqrt",
        time_bucket_divisor: float = 1.0,
        time_bucket_unit: str = "minutes",
    ) -> None:
        super().__init__()
        check("time_bucket_fn", time_bucket_fn, BUCKET_FNS)
        check("time_bucket_unit", time_bucket_unit, BUCKET_UNITS)
        self.n_heads, self.max_seq_len, self.num_time_buckets = n_heads, max_seq_len, num_time_buckets
        self.time_bucket_fn, self.time_bucket_unit = time_bucket_fn, time_bucket_unit
        self.time_bucket_divisor = time_bucket_divisor
        self.pos_w = nn.Parameter(_uniform(2 * max_seq_len - 1, n_heads))
        self.ts_w = nn.Parameter(_uniform(num_time_buckets + 1, n_heads))

    def forward(self, time_diffs: Tensor | None = None, seq_len: int | None = None) -> Tensor:
        if time_diffs is None and seq_len is None:
            raise SettingError("the bias needs time_diffs (B, L) or seq_len")
        # Not through int(): that would fix the length of an exported program.
        length: int = seq_len if time_diffs is None else time_diffs.shape[1]  # type: ignore[assignment]
        check_length(length, self.max_seq_len)
        position = torch.arange(length, device=self.pos_w.device)
        offset = position[None, :] - position[:, None] + self.max_seq_len - 1  # (L, L), never negative
        bias = self.pos_w[offset].permute(2, 0, 1).unsqueeze(0)  # (1, H, L, L)
        if time_diffs is None:
            return bias
        gap = (time_diffs[:, :, None] - time_diffs[:, None, :]).float().abs()  # (B, L, L): the anchor cancels
        bucket = time_buckets(
            gap, self.num_time_buckets, self.time_bucket_fn, self.time_bucket_unit, self.time_bucket_divisor
        )
        return bias + self.ts_w[bucket].permute(0, 3, 1, 2)  # (B, H, L, L)


class VocabMask(nn.Module):
    """Pushes the scores of `invalid_items` (tokens, usually [0] for padding) down to -1e9."""

    mask: Tensor  # bool (V,), True where an item may be recommended

    def __init__(self, vocab_size: int, invalid_items: Iterable[int] | None = None) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        mask = torch.ones(vocab_size, dtype=torch.bool)
        mask[[i for i in invalid_items or () if 0 <= i < vocab_size]] = False
        self.register_buffer("mask", mask)

    def apply_mask(self, logits: Tensor, invalid_ids: Tensor | None = None) -> Tensor:
        """Masked copy of `logits` (..., V); `invalid_ids` (B, N) or (N,) adds items for each row of (B, V).

        Ids outside the vocabulary mask token 0, as in the original.
        """
        masked = logits.masked_fill(~self.mask, MASKED)
        if invalid_ids is None:
            return masked
        ids = invalid_ids.to(device=masked.device, dtype=torch.long)
        if ids.dim() == 1:
            ids = ids.expand(masked.shape[0], -1)
        if masked.dim() != 2 or ids.dim() != 2 or ids.shape[0] != masked.shape[0]:
            raise InputError(
                f"masking by row needs logits (B, V) and invalid_ids (B, N) with the same B, "
                f"not {tuple(logits.shape)} and {tuple(invalid_ids.shape)}"
            )
        ids = ids.where((ids >= 0) & (ids < self.vocab_size), 0)
        return masked.scatter(1, ids, MASKED)


def _uniform(rows: int, n_heads: int) -> Tensor:
    bound = math.sqrt(1.0 / rows)
    return torch.empty(rows, n_heads).uniform_(-bound, bound)
