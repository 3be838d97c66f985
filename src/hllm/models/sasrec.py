"""SASRec (Kang and McAuley, 2018, arXiv:1808.09781) on packed histories, as published.

    x = item vector * sqrt(d) + position        learned absolute positions, counted from a window's first event
    x = x + dropout(attention(norm(x)))
    x = x + dropout(W2 dropout(ReLU(W1 norm(x))))

and a last norm, layer norms throughout. Nothing but positions tells attention the order. The authors' code pads on
the left, so that positions count from the window's end, and a state depends on how many events come after it; here
none does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.models.attention import Layout, attend, make_layout
from hllm.models.block import Dropout
from hllm.models.config import UsersConfig
from hllm.packing import Rows, Signals
from hllm.settings import heads_of


class SASRecBlock(nn.Module):
    """Attention, then a ReLU feed-forward layer, each added to its input, on packed tokens (T, d)."""

    def __init__(self, d_model: int, n_heads: int, ffn_hidden: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, ffn_hidden), nn.Linear(ffn_hidden, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        t, d = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(t, 3, self.n_heads, d // self.n_heads)
        drop = self.dropout.p if self.training else 0.0
        mixed = attend(qkv, layout, dropout=drop)
        x = x + self.dropout(self.out(mixed.reshape(t, d)))
        return x + self.dropout(self.down(self.dropout(F.relu(self.up(self.ffn_norm(x))))))


class SASRecUserModel(nn.Module):
    """Item vectors (T, d) of packed histories to hidden states (T, d), one per position."""

    def __init__(self, users: UsersConfig, width: int, max_len: int | None) -> None:
        super().__init__()
        assert max_len is not None  # a position has a vector
        self.n_heads = heads_of(width, users.n_heads)
        self.by_bounds = users.dropout == 0  # kernels drop no attention weights
        self.positions = nn.Embedding(max_len, width)
        self.dropout = Dropout(users.dropout)
        self.blocks = nn.ModuleList(
            SASRecBlock(width, self.n_heads, users.ffn_hidden or width, users.dropout)
            for _ in range(users.n_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Xavier-normal matrices, as in the common PyTorch form; positions are as large as scaled item vectors."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.positions.weight, std=0.02 * self.positions.embedding_dim**0.5)

    def forward(self, x: Tensor, rows: Rows, signals: Signals) -> Tensor:
        x = x * x.shape[1] ** 0.5 + self.positions(positions_in_rows(rows))
        x = self.dropout(x)
        layout = make_layout(rows, self.n_heads)
        for block in self.blocks:
            x = block(x, layout)  # (T, d)
        return self.norm(x)


def positions_in_rows(rows: Rows) -> Tensor:
    """Position int64 (T,) of each token in its own sequence, from 0. Fixed shapes, no sync."""
    segments = rows.segments  # (B, R)
    slot = torch.arange(segments.shape[1], device=segments.device)
    opens = torch.ones_like(segments, dtype=torch.bool)
    opens[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(opens, slot, 0).cummax(dim=1).values  # (B, R)
    # Empty slots form one run, which may be longer than any history.
    return (slot - start).masked_fill(segments < 0, 0).flatten()[rows.slots]
