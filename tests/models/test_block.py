"""The block as its formula, and its feed-forward layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hllm.models.attention import Layout, make_layout
from hllm.models.block import Attention, GatedBlock, SwiGLU
from hllm.packing import Batch, make_rows, offsets_of

D, HEADS = 8, 2


def layout_of(lengths: list[int]) -> Layout:
    zeros = torch.zeros(sum(lengths), dtype=torch.long)
    batch = Batch(torch.arange(len(lengths)), zeros + 1, zeros, zeros, offsets_of(torch.tensor(lengths)))
    return make_layout(make_rows(batch), HEADS)


def test_swiglu() -> None:
    torch.manual_seed(0)
    layer = SwiGLU(D, 12)
    x = torch.randn(5, D)
    gate, value = (x @ layer.up.weight.T).split(12, dim=1)
    torch.testing.assert_close(layer(x), (gate * torch.sigmoid(gate) * value) @ layer.down.weight.T)


def test_a_block_is_two_gated_branches() -> None:
    torch.manual_seed(0)
    block = GatedBlock(D, HEADS, 12, 16, dropout=0.5).eval()
    layout = layout_of([4, 2])
    x = torch.randn(6, D)

    def norm(v: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return v / (v.square().mean(-1, keepdim=True) + torch.finfo(v.dtype).eps).sqrt() * weight

    h = norm(x, block.attention_norm.weight)
    expected = x + torch.sigmoid(block.attention_gate(h)) * block.attention(h, layout)
    h = norm(expected, block.ffn_norm.weight)
    expected = expected + torch.sigmoid(block.ffn_gate(h)) * block.ffn(h)
    torch.testing.assert_close(block(x, layout), expected)


def test_attention_of_one_head_by_hand() -> None:
    torch.manual_seed(0)
    layer = Attention(D, 1, 16)
    torch.nn.init.normal_(layer.bias.table)
    layout = layout_of([3])
    x = torch.randn(3, D)
    q, k, v = (x @ layer.qkv.weight.T).split(D, dim=1)
    scores = q @ k.T / D**0.5
    for i in range(3):
        for j in range(3):
            scores[i, j] = scores[i, j] + layer.bias.table[0, i - j] if j <= i else -torch.inf
    torch.testing.assert_close(layer(x, layout), F.softmax(scores, -1) @ v @ layer.out.weight.T)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    block = GatedBlock(D, HEADS, 12, 16, dropout=0.5)
    layout = layout_of([6])
    x = torch.randn(6, D)
    assert not torch.equal(block(x, layout), block(x, layout))
    block.eval()
    assert torch.equal(block(x, layout), block(x, layout))
