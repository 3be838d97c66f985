"""The user model in padded form: rectangles of item vectors in, queries out, as exporters want it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hllm.errors import ConfigError
from hllm.models.block import GatedBlock
from hllm.models.gated import GatedUserModel
from hllm.models.hllm import HLLM


class DenseUserModel(nn.Module):
    """vectors (B, L, w), right-padded, and lengths int64 (B,), 1 to L, -> queries float32 (B, w).

    The weights are those of the packed model, and so is every result: what lies beyond a length is not looked at.
    A score is the dot product of a query and a row of the scored item vectors.
    """

    def __init__(self, model: HLLM) -> None:
        super().__init__()
        user_model = model.user_model
        if not isinstance(user_model, GatedUserModel):
            raise ConfigError(
                f"user model {type(user_model).__name__} has no padded form for export yet; valid: gated (presets "
                "hllm-lite, demo, sasrec). --format safetensors and parquet take any"
            )
        self.user_model = user_model
        self.scorer = model.scorer

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        b, length, _ = vectors.shape
        place = torch.arange(length, device=vectors.device)
        distance = place.unsqueeze(1) - place  # (L, L)
        known = place < lengths.unsqueeze(1)  # (B, L)
        # A padded place looks at what is known before it, so that no softmax is taken over nothing.
        mask = ((distance >= 0) & known.unsqueeze(1)).unsqueeze(1)  # (B, 1, L, L)
        x = self.user_model.input_norm(vectors)
        for block in self.user_model.blocks:
            assert isinstance(block, GatedBlock)
            x = _block(block, x, mask, distance)
        hidden = self.user_model.norm(x)
        last = hidden[torch.arange(b, device=vectors.device), lengths - 1]
        return self.scorer.query(last)


def _block(block: GatedBlock, x: Tensor, mask: Tensor, distance: Tensor) -> Tensor:
    h = block.attention_norm(x)
    x = x + torch.sigmoid(block.attention_gate(h)) * _attention(block, h, mask, distance)
    h = block.ffn_norm(x)
    return x + torch.sigmoid(block.ffn_gate(h)) * block.ffn(h)


def _attention(block: GatedBlock, h: Tensor, mask: Tensor, distance: Tensor) -> Tensor:
    attention, table = block.attention, block.attention.bias.table  # (H, D + 1)
    b, length, d = h.shape
    heads = attention.qkv(h).view(b, length, 3, attention.n_heads, d // attention.n_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, L, D)
    bias = table[:, distance.clamp(0, table.shape[1] - 1)]  # (H, L, L)
    # Written out: exporters take scaled_dot_product_attention apart, into other strides than they planned with.
    scores = (q @ k.transpose(2, 3)) * (d // attention.n_heads) ** -0.5 + bias
    mixed = scores.masked_fill(~mask, float("-inf")).softmax(3) @ v  # (B, H, L, D)
    return attention.out(mixed.transpose(1, 2).reshape(b, length, d))
