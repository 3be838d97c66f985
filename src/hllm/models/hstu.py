"""HSTU (Zhai et al., 2024, arXiv:2402.17152) on packed histories.

    u, v, q, k = SiLU(W1 norm(x))
    y          = x + W2 (u * norm(SiLU(q k + position bias + time bias) / n  v))

Pointwise attention, whose weights need not sum to one, keeps how strongly a history speaks; the gate `u` and the
norms take the place of a feed-forward layer. As in generative-recommenders and RecTools, n is the longest history the
model sees, not the number of events seen, and nothing divides q k by the square root of the width.

The time bias goes by the time between two events of the history. Both originals count up to the *next* event, whose
time is then known; here nothing reads the time of what is to be predicted (protocol.md, "Query time"). Biases are per
head. Histories without clock times go without time bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.models.attention import Layout, attend_pointwise, make_layout
from hllm.models.block import Dropout
from hllm.models.config import UsersConfig
from hllm.models.relbias import RelativePositionBias
from hllm.models.stack import BlockStack
from hllm.models.timebias import N_BUCKETS, Gaps, make_gaps
from hllm.packing import Rows, Signals
from hllm.settings import heads_of

EPSILON = 1e-6


@dataclass(frozen=True)
class TimedLayout(Layout):
    """Rows, and the time between their events; None where it says nothing."""

    gaps: Gaps | None = None


class HSTUBlock(nn.Module):
    """One layer of the formula above on packed tokens (T, d). `n` divides the attention weights."""

    def __init__(
        self, d_model: int, n_heads: int, max_distance: int, dropout: float, n: float, time_bias: bool
    ) -> None:
        super().__init__()
        self.n_heads, self.n = n_heads, n
        self.uvqk = nn.Linear(d_model, 4 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model)
        self.bias = RelativePositionBias(n_heads, max_distance)
        self.time_table = nn.Parameter(torch.zeros(n_heads, N_BUCKETS)) if time_bias else None
        self.dropout = Dropout(dropout)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As in generative-recommenders; biases by position and time start at zero."""
        nn.init.normal_(self.uvqk.weight, std=0.02)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, layout: TimedLayout) -> Tensor:
        t, d = x.shape
        h = F.silu(self.uvqk(F.layer_norm(x, (d,), eps=EPSILON)))
        h = h.view(t, 4, self.n_heads, d // self.n_heads)
        u, vqk = h[:, 0], h[:, 1:]
        mixed = attend_pointwise(vqk, layout, self.n, self.bias(layout.length), self.time_table, layout.gaps)
        mixed = F.layer_norm(mixed.reshape(t, d), (d,), eps=EPSILON)
        return x + self.out(self.dropout(u.reshape(t, d) * mixed))


class HSTUUserModel(BlockStack):
    """A stack of `HSTUBlock`."""

    def __init__(self, users: UsersConfig, width: int, max_len: int | None) -> None:
        n_heads = heads_of(width, users.n_heads)
        n = max_len or users.max_distance  # any constant will do: a norm follows
        blocks = (
            HSTUBlock(width, n_heads, users.max_distance, users.dropout, n, users.time_bias)
            for _ in range(users.n_layers)
        )
        super().__init__(users, width, n_heads, blocks)
        self.time_bias = users.time_bias

    def layout(self, rows: Rows, signals: Signals) -> TimedLayout:
        plain = make_layout(rows, self.n_heads)
        if not (self.time_bias and signals.clock):
            gaps = None
        elif rows.bounds is not None:
            gaps = Gaps(signals.times, None)
        else:
            gaps = make_gaps(signals.times, rows, whole=plain.mask is not None)
        return TimedLayout(rows, plain.mask, gaps=gaps)
