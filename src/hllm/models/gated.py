"""The user model of `hllm-lite`: gated pre-norm transformer blocks over packed histories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hllm.models.block import GatedBlock
from hllm.models.config import UsersConfig
from hllm.models.stack import BlockStack
from hllm.packing import Rows, Signals
from hllm.settings import heads_of


class GatedUserModel(BlockStack):
    """A stack of `GatedBlock`."""

    def __init__(self, users: UsersConfig, width: int) -> None:
        n_heads = heads_of(width, users.n_heads)
        ffn_hidden = users.ffn_hidden or -(-8 * width // 3 // 32) * 32
        blocks = (
            GatedBlock(width, n_heads, ffn_hidden, users.max_distance, users.dropout)
            for _ in range(users.n_layers)
        )
        super().__init__(users, width, n_heads, blocks)
        self.reset_parameters()

    def last(self, x: Tensor, rows: Rows, signals: Signals, offsets: Tensor) -> Tensor:
        """What `forward` gives at the last token of each sequence (U, d), none of them empty, for ranking on a CPU."""
        layout = self.layout(rows, signals)
        x = self.enter(x)
        *before, final = self.blocks
        for block in before:
            x = block(x, layout)
        return self.norm(final.last(x, layout, offsets))  # type: ignore[operator]

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
