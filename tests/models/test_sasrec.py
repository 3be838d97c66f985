"""SASRec's published block against PyTorch's own transformer layer, one user at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.models.config import UsersConfig
from hllm.models.sasrec import SASRecUserModel, positions_in_rows
from hllm.packing import Batch, make_rows, offsets_of
from hllm.testing import check_user_model

D, HEADS, MAX_LEN = 12, 3, 20
USERS = UsersConfig(user_model="sasrec", d_model=D, n_heads=HEADS, n_layers=2, dropout=0.0)


def model_of() -> SASRecUserModel:
    """Every weight random, also biases and norms, so that none can be left out or taken for another."""
    torch.manual_seed(0)
    model = SASRecUserModel(USERS, D, MAX_LEN)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.double()


def batch_of(lengths: list[int]) -> tuple[Tensor, Batch]:
    total = sum(lengths)
    ones = torch.ones(total, dtype=torch.long)
    batch = Batch(torch.arange(len(lengths)), ones, ones, ones, offsets_of(torch.tensor(lengths)))
    x = torch.randn(total, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.requires_grad_(), batch


THEIRS = {  # our parameters' names in PyTorch's layer
    "attention_norm": "norm1", "qkv.weight": "self_attn.in_proj_weight", "qkv.bias": "self_attn.in_proj_bias",
    "out": "self_attn.out_proj", "ffn_norm": "norm2", "up": "linear1", "down": "linear2",
}  # fmt: skip


def reference(model: SASRecUserModel, x: Tensor, batch: Batch) -> Tensor:
    """PyTorch's layers on our parameters, one user at a time."""
    layer = nn.TransformerEncoderLayer(D, HEADS, D, 0.0, "relu", batch_first=True, norm_first=True)
    done = []
    for a, b in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        h = x[a:b] * D**0.5 + model.positions.weight[: b - a]
        mask = nn.Transformer.generate_square_subsequent_mask(b - a, dtype=torch.float64)
        for block in model.blocks:
            weights = {}
            for name, parameter in block.named_parameters():
                theirs = THEIRS.get(name) or f"{THEIRS[name.partition('.')[0]]}.{name.partition('.')[2]}"
                weights[theirs] = parameter
            given = {"src": h.unsqueeze(0), "src_mask": mask, "is_causal": True}
            h = torch.func.functional_call(layer, weights, (), given, strict=True).squeeze(0)
        done.append(F.layer_norm(h, (D,), model.norm.weight, model.norm.bias))
    return torch.cat(done)


@pytest.mark.parametrize("row", [None, 48])
def test_equals_a_transformer_per_user(row: int | None) -> None:
    model, (x, batch) = model_of(), batch_of([5, 17, 1, 3])
    ours, theirs = model(x, make_rows(batch, row), batch.signals), reference(model, x, batch)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    upstream = torch.randn(ours.shape, dtype=ours.dtype)
    leaves = [x, *model.parameters()]
    mine = torch.autograd.grad(ours, leaves, upstream)
    torch.testing.assert_close(mine, torch.autograd.grad(theirs, leaves, upstream), atol=1e-9, rtol=1e-9)


def test_the_contract_of_user_models() -> None:
    model = model_of().eval()
    check_user_model(model, D)


def test_positions_count_from_each_history_s_first_event() -> None:
    _, batch = batch_of([3, 1, 2])
    rows = make_rows(batch, row=8, n_rows=40)  # more empty slots in a run than there are positions
    assert positions_in_rows(rows).tolist() == [0, 1, 2, 0, 0, 1]
