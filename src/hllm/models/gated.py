"""The user model of `hllm-lite`: gated pre-norm transformer blocks over packed histories.

item vectors (T, d) -> norm -> masked inputs -> gated blocks -> norm -> hidden (T, d)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hllm.models.attention import make_layout
from hllm.models.block import GatedBlock, RMSNorm
from hllm.models.config import UsersConfig
from hllm.packing import Rows, Signals
from hllm.settings import heads_of


class GatedUserModel(nn.Module):
    """Item vectors (T, d) of packed histories to hidden states (T, d), one per position."""

    def __init__(self, users: UsersConfig, width: int) -> None:
        super().__init__()
        self.n_heads = heads_of(width, users.n_heads)
        ffn_hidden = users.ffn_hidden or -(-8 * width // 3 // 32) * 32
        self.mask_prob = users.mask_prob
        # Of the size of a normalised input. From zero, RMSNorm would blow its gradient up until
        # clipping leaves nothing of all the others'.
        self.mask_vector = nn.Parameter(torch.randn(width))
        self.input_norm = RMSNorm(width)
        self.dropout = nn.Dropout(users.dropout)
        self.blocks = nn.ModuleList(
            GatedBlock(width, self.n_heads, ffn_hidden, users.max_distance, users.dropout)
            for _ in range(users.n_layers)
        )
        self.norm = RMSNorm(width)
        self.reset_parameters()

    def forward(self, x: Tensor, rows: Rows, signals: Signals) -> Tensor:
        x = self.input_norm(x)  # (T, d), so that the vectors, not the blocks, lead at the start
        if self.training and self.mask_prob:
            # Hide some inputs (never the targets), so that no single neighbour is relied on.
            hidden = torch.rand(x.shape[0], 1, device=x.device) < self.mask_prob
            x = torch.where(hidden, self.mask_vector.to(x.dtype), x)
        layout = make_layout(rows, self.n_heads)  # who may look at whom, the same for every layer
        x = self.dropout(x)  # (T, d)
        for block in self.blocks:
            x = block(x, layout)  # (T, d)
        return self.norm(x)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """N(0, .02); what a block adds starts smaller: a deep model begins close to its input (GPT-2)."""
        small = 0.02 / (2 * len(self.blocks)) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(
                    module.weight, std=small if name.endswith(("attention.out", "ffn.down")) else 0.02
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
