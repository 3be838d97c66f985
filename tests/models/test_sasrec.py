"""SASRec's published block against PyTorch's own transformer layer, one user at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hllm.models.config import UsersConfig
from hllm.models.sasrec import SASRecUserModel, positions_in_rows
from hllm.packing import Batch, make_rows, offsets_of
from hllm.testing import check_user_model

D, HEADS, MAX_LEN = 12, 3, 20
USERS = UsersConfig(user_model="sasrec", d_model=D, n_heads=HEADS, n_layers=2, dropout=0.0)


def model_of() -> SASRecUserModel:
    torch.manual_seed(0)
    return SASRecUserModel(USERS, D, MAX_LEN).double()


def batch_of(lengths: list[int]) -> tuple[Tensor, Batch]:
    total = sum(lengths)
    ones = torch.ones(total, dtype=torch.long)
    batch = Batch(torch.arange(len(lengths)), ones, ones, ones, offsets_of(torch.tensor(lengths)))
    x = torch.randn(total, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_(), batch


def reference(model: SASRecUserModel, x: Tensor, batch: Batch) -> Tensor:
    done = []
    for a, b in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        h = x[a:b] * D**0.5 + model.positions.weight[: b - a]
        for block in model.blocks:
            layer = nn.TransformerEncoderLayer(D, HEADS, D, 0.0, "relu", batch_first=True, norm_first=True)
            layer = layer.double()
            attention = layer.self_attn
            pairs = {
                attention.in_proj_weight: block.qkv.weight,
                attention.in_proj_bias: block.qkv.bias,
                attention.out_proj.weight: block.out.weight,
                attention.out_proj.bias: block.out.bias,
                layer.linear1.weight: block.up.weight,
                layer.linear1.bias: block.up.bias,
                layer.linear2.weight: block.down.weight,
                layer.linear2.bias: block.down.bias,
            }
            with torch.no_grad():
                for theirs, ours in pairs.items():
                    theirs.copy_(ours)
            mask = nn.Transformer.generate_square_subsequent_mask(b - a, dtype=torch.float64)
            h = layer(h.unsqueeze(0), src_mask=mask, is_causal=True).squeeze(0)
        done.append(model.norm(h))
    return torch.cat(done)


@pytest.mark.parametrize("row", [None, 48])
def test_equals_a_transformer_per_user(row: int | None) -> None:
    model, (x, batch) = model_of(), batch_of([5, 17, 1, 3])
    ours, theirs = model(x, make_rows(batch, row), batch.signals), reference(model, x, batch)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    upstream = torch.randn(ours.shape, dtype=ours.dtype)
    leaves = [x, model.positions.weight]
    mine = torch.autograd.grad(ours, leaves, upstream)
    torch.testing.assert_close(mine, torch.autograd.grad(theirs, leaves, upstream), atol=1e-10, rtol=0)


def test_the_contract_of_user_models() -> None:
    model = model_of().eval()
    check_user_model(model, D)


def test_positions_count_from_each_history_s_first_event() -> None:
    _, batch = batch_of([3, 1, 2])
    rows = make_rows(batch, row=8, n_rows=40)  # more empty slots in a run than there are positions
    assert positions_in_rows(rows).tolist() == [0, 1, 2, 0, 0, 1]
