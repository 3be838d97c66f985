"""The gated pre-norm transformer block: attention and SwiGLU, each behind a sigmoid gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.models import branches
from hllm.models.attention import Layout, attend, attend_last
from hllm.models.relbias import RelativePositionBias
from hllm.packing import last_positions


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` whose weight follows its input's dtype: the fused kernel wants both alike, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 2 and branches.by_hand(x):
            return branches.normalised(x, self)
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Dropout(nn.Dropout):
    """`nn.Dropout`, on a CPU by 16 random bits a number, a tenth of the time of a double each.

    The probability is then the nearest multiple of 2^-16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        factors = self.factors(x)
        return x if factors is None else x * factors

    def factors(self, x: Tensor) -> Tensor | None:
        """What numbers shaped as `x`, on a CPU, are multiplied by; None where all are kept."""
        if not self.training or self.p == 0:
            return None
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)  # even over [-2^15, 2^15)
        return (bits >= dropped - 2**15).to(x.dtype).mul_(2**16 / (2**16 - dropped))


class Attention(nn.Module):
    """Multi-head causal attention with relative position bias on packed tokens (T, d)."""

    def __init__(self, d_model: int, n_heads: int, max_distance: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.bias = RelativePositionBias(n_heads, max_distance)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return self.out(self.mix(self.qkv(x), layout))

    def mix(self, qkv: Tensor, layout: Layout) -> Tensor:
        """What each token gathers (T, d) by its queries, keys and values (T, 3 d)."""
        t, d = qkv.shape[0], qkv.shape[1] // 3
        mixed = attend(qkv.view(t, 3, self.n_heads, d // self.n_heads), layout, self.bias(layout.length))
        return mixed.reshape(t, d)

    def last(self, x: Tensor, ends: Tensor, layout: Layout, offsets: Tensor) -> Tensor:
        """(U, d) of each sequence's last token, `ends` (U, d) among x (T, d)."""
        t, d = x.shape
        own, others = self.qkv.weight.split((d, 2 * d))
        q = F.linear(ends, own).view(-1, self.n_heads, d // self.n_heads)
        kv = F.linear(x, others).view(t, 2, self.n_heads, d // self.n_heads)
        return self.out(attend_last(q, kv, offsets, self.bias(layout.length)).reshape(-1, d))


class SwiGLU(nn.Module):
    """Feed-forward layer with a SiLU gate (Shazeer, 2020)."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class GatedBlock(nn.Module):
    """x + gate * branch(norm(x)), for attention and then for the feed-forward layer.

    The gate is a sigmoid of the normalised input, per channel: a block can pass a history's
    vectors on unchanged, which short and noisy histories need more often than text does.
    """

    def __init__(
        self, d_model: int, n_heads: int, ffn_hidden: int, max_distance: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(d_model)
        self.attention = Attention(d_model, n_heads, max_distance)
        self.attention_gate = nn.Linear(d_model, d_model)
        self.ffn_norm = RMSNorm(d_model)
        self.ffn = SwiGLU(d_model, ffn_hidden)
        self.ffn_gate = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        if branches.by_hand(x):
            return self._by_hand(x, layout)
        h = self.attention_norm(x)
        x = x + self.dropout(torch.sigmoid(self.attention_gate(h)) * self.attention(h, layout))
        h = self.ffn_norm(x)
        return x + self.dropout(torch.sigmoid(self.ffn_gate(h)) * self.ffn(h))

    def last(self, x: Tensor, layout: Layout, offsets: Tensor) -> Tensor:
        """What `forward` gives at each sequence's last token (U, d); of the others it takes keys and values alone."""
        h = self.attention_norm(x)
        ends = last_positions(offsets)
        x, own = x[ends], h[ends]
        mixed = self.attention.last(h, own, layout, offsets)
        x = x + self.dropout(torch.sigmoid(self.attention_gate(own)) * mixed)
        h = self.ffn_norm(x)
        return x + self.dropout(torch.sigmoid(self.ffn_gate(h)) * self.ffn(h))

    def _by_hand(self, x: Tensor, layout: Layout) -> Tensor:
        """The same with a backward of our own (branches.py)."""
        attention, feed = self.attention, self.ffn
        qkv, logits = branches.project(x, self.attention_norm, attention.qkv, self.attention_gate)
        mixed = attention.mix(qkv, layout)
        x = branches.rejoin(x, logits, mixed, attention.out, self.dropout.factors(x))
        return branches.ffn(x, self.ffn_norm, feed.up, feed.down, self.ffn_gate, self.dropout.factors(x))
