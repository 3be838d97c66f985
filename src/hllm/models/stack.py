"""What the user models `gated` and `hstu` share: normalised, partly masked inputs, a stack of blocks, a last norm.

item vectors (T, d) -> norm -> masked inputs -> blocks -> norm -> hidden (T, d)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hllm.models.attention import Layout, make_layout
from hllm.models.block import Dropout, RMSNorm
from hllm.models.config import UsersConfig
from hllm.packing import Rows, Signals


class BlockStack(nn.Module):
    """Item vectors (T, d) of packed histories to hidden states (T, d), one per position."""

    by_bounds = True  # attention may go by the bounds of sequences (`Rows.bounds`)

    def __init__(self, users: UsersConfig, width: int, n_heads: int, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.mask_prob = users.mask_prob
        # Of the size of a normalised input. From zero, RMSNorm would blow its gradient up until
        # clipping leaves nothing of all the others'.
        self.mask_vector = nn.Parameter(torch.randn(width))
        self.input_norm = RMSNorm(width)
        self.dropout = Dropout(users.dropout)
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor, rows: Rows, signals: Signals) -> Tensor:
        layout = self.layout(rows, signals)
        x = self.enter(x)
        for block in self.blocks:
            x = block(x, layout)  # (T, d)
        return self.norm(x)

    def enter(self, x: Tensor) -> Tensor:
        """What the first block reads, (T, d)."""
        x = self.input_norm(x)  # so that the vectors, not the blocks, lead at the start
        if self.training and self.mask_prob:
            # Hide some inputs (never the targets), so that no single neighbour is relied on.
            hidden = torch.rand(x.shape[0], 1, device=x.device) < self.mask_prob
            x = torch.where(hidden, self.mask_vector.to(x.dtype), x)
        return self.dropout(x)

    def layout(self, rows: Rows, signals: Signals) -> Layout:
        """Who may look at whom, and what else every block needs."""
        return make_layout(rows, self.n_heads)
