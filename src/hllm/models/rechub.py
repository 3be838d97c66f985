"""torch-rechub's lightweight HLLM on packed histories. Read from top to bottom.

    item vectors (T, d) + position + time -> pre-norm blocks -> hidden (T, d)

Item vectors are the item LLM's own, frozen. Parameters have torch-rechub's names, so weights move
both ways (models/rechub_weights.py). What differs from compat/rechub, which repeats
the original over padded windows: nobody attends to padding, and a window is read once for all of
its targets instead of once for each.

Positions and times count from a window's last event, as in the original: its position is
max_len - 1, its time bucket 0, and ranking reads its hidden state alone. In training every
position of a window predicts, and those before the last one see how long before the window's last
event they lie, later than their own target. No metric does: `time_embedding="window_end"` is kept
for the letter of the original, and "previous" (the gap since the event before) is causal throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.models.attention import Layout, attend, make_layout
from hllm.models.config import ScorerConfig, UsersConfig
from hllm.packing import Rows, Signals
from hllm.settings import heads_of

BIAS_BUCKETS = 32


class RechubBlock(nn.Module):
    """x + attention(norm(x)), then x + ReLU feed-forward(norm(x)), on packed tokens (T, d)."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.W_Q, self.W_K, self.W_V, self.W_O = (nn.Linear(d_model, d_model) for _ in range(4))
        self.ffn = feed_forward(d_model, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout, bias: Tensor) -> Tensor:
        h = self.norm1(x)
        qkv = torch.stack([project(h) for project in (self.W_Q, self.W_K, self.W_V)], dim=1)
        drop = self.dropout.p if self.training else 0.0
        mixed = attend(qkv.unflatten(2, (self.n_heads, -1)), layout, bias, dropout=drop).flatten(1)  # (T, d)
        x = x + self.dropout(self.W_O(mixed))
        return x + self.ffn(self.norm2(x))


class BucketedDistanceBias(nn.Module):
    """Bias (H, L) per head and bucket of distance: 32 buckets spread evenly over `max_len`."""

    def __init__(self, n_heads: int, max_len: int) -> None:
        super().__init__()
        self.max_len = max_len
        self.rel_pos_bias_table = nn.Parameter(torch.zeros(BIAS_BUCKETS, n_heads))

    def forward(self, length: int) -> Tensor:
        distance = torch.arange(length, device=self.rel_pos_bias_table.device).clamp(max=self.max_len)
        bucket = distance * (BIAS_BUCKETS - 1) // self.max_len  # (L,)
        return F.embedding(bucket, self.rel_pos_bias_table).T


class RechubUserModel(nn.Module):
    """Item vectors (T, d) of packed windows to hidden states (T, d), one per position."""

    def __init__(self, users: UsersConfig, scorer: ScorerConfig, d_model: int, max_len: int | None) -> None:
        super().__init__()
        assert max_len is not None  # a position has a vector
        self.n_heads = heads_of(d_model, users.n_heads)
        self.max_len = max_len
        self.unit = scorer.scorer == "cosine"
        self.time_from = users.time_embedding
        self.num_time_buckets, self.time_bucket_fn = users.num_time_buckets, users.time_bucket_fn
        self.position_embedding = nn.Embedding(max_len, d_model)
        if self.time_from != "none":
            # Row 0 is "now". As in the original it is never trained, since padding shares it there.
            self.time_embedding = nn.Embedding(users.num_time_buckets + 1, d_model, padding_idx=0)
        self.transformer_blocks = nn.ModuleList(
            RechubBlock(d_model, self.n_heads, users.dropout) for _ in range(users.n_layers)
        )
        self.rel_pos_bias = BucketedDistanceBias(self.n_heads, max_len)
        self.dropout = nn.Dropout(users.dropout)
        reset_parameters(self)

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, under the name that they have in other user models."""
        return self.transformer_blocks

    def forward(self, x: Tensor, rows: Rows, signals: Signals) -> Tensor:
        if self.unit:
            x = F.normalize(x, dim=-1)  # (T, d): what is compared by direction enters by direction
        ends = window_ends(rows)  # (T,): slot of each token's last event
        position = (self.max_len - 1 - (ends - rows.slots)).clamp(min=0)
        x = x + self.position_embedding(position)
        if self.time_from != "none":
            seconds = self._seconds(signals.times, rows, ends)
            bucket = time_buckets(seconds, self.num_time_buckets - 1, self.time_bucket_fn)
            x = x + self.time_embedding(bucket)
        x = self.dropout(x)
        layout = make_layout(rows, self.n_heads)
        bias = self.rel_pos_bias(layout.length)  # (H, R), the same in every layer
        for block in self.transformer_blocks:
            x = block(x, layout, bias)  # (T, d)
        return x

    def _seconds(self, times: Tensor, rows: Rows, ends: Tensor) -> Tensor:
        """Seconds (T,) from each event to its window's last one, or from the event before to it."""
        grid = times.new_zeros(rows.segments.numel()).index_copy(0, rows.slots, times)  # (B * R,)
        if self.time_from == "window_end":
            return (grid[ends] - times).clamp(min=0)
        before = (rows.slots - 1).clamp(min=0)
        segments = rows.segments.flatten()
        first = (segments[before] != segments[rows.slots]) | (rows.slots == 0)
        return (times - grid[before]).masked_fill(first, 0)


def feed_forward(d_model: int, dropout: float) -> nn.Sequential:
    """d -> 4 d -> d with ReLU, and dropout after each layer."""
    return nn.Sequential(
        nn.Linear(d_model, 4 * d_model),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(4 * d_model, d_model),
        nn.Dropout(dropout),
    )


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


def window_ends(rows: Rows) -> Tensor:
    """Flat slot int64 (T,) of the last event of each token's own sequence. Fixed shapes, no sync."""
    segments = rows.segments  # (B, R)
    n_slots = segments.shape[1]
    slot = torch.arange(n_slots, device=segments.device)
    closes = torch.ones_like(segments, dtype=torch.bool)
    closes[:, :-1] = segments[:, :-1] != segments[:, 1:]
    # The nearest closing slot at or after each slot: a running minimum from the right.
    end = torch.where(closes, slot, n_slots).flip(1).cummin(dim=1).values.flip(1)  # (B, R)
    first = torch.arange(segments.shape[0], device=segments.device).unsqueeze(1) * n_slots
    return (end + first).flatten()[rows.slots]


def time_buckets(
    seconds: Tensor, top: int, fn: str = "sqrt", unit: str = "minutes", divisor: float = 1.0
) -> Tensor:
    """Bucket int64, shape of `seconds`: sqrt or natural log of the time, / divisor, within [0, top]."""
    t = seconds.float()
    if unit == "minutes":
        t = t / 60.0
    t = t.clamp(min=1e-6)
    t = torch.sqrt(t) if fn == "sqrt" else torch.log(t)
    return (t / divisor).clamp(min=0, max=top).long()
