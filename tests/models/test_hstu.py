"""HSTU on packed rows against the paper's formula, one user and one position at a time, in values and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hllm.models import attention as module
from hllm.models.config import UsersConfig
from hllm.models.hstu import HSTUBlock, HSTUUserModel
from hllm.models.timebias import N_BUCKETS
from hllm.packing import Batch, Signals, make_rows, offsets_of
from hllm.testing import check_user_model

D, HEADS, MAX_LEN = 12, 3, 50
LENGTHS = [5, 3, 17, 1, 33]
USERS = UsersConfig(
    user_model="hstu", d_model=D, n_heads=HEADS, n_layers=2, dropout=0.0, mask_prob=0.0, max_distance=6
)


def model_of(users: UsersConfig = USERS) -> HSTUUserModel:
    """Every weight random, also those that start at zero."""
    torch.manual_seed(0)
    model = HSTUUserModel(users, D, MAX_LEN)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double()


def batch_of(lengths: list[int]) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(1)
    total = sum(lengths)
    times = torch.cat([torch.randint(0, 10**7, (n,), generator=generator).sort().values for n in lengths])
    ones = torch.ones(total, dtype=torch.long)
    batch = Batch(torch.arange(len(lengths)), ones, times, ones, offsets_of(torch.tensor(lengths)))
    return torch.randn(total, D, dtype=torch.float64, generator=generator, requires_grad=True), batch


def naive_block(block: HSTUBlock, x: Tensor, times: list[int], clock: bool) -> Tensor:
    """The formula for one user, x (n, D)."""
    n, width = len(x), D // HEADS
    h = F.silu(F.layer_norm(x, (D,), eps=1e-6) @ block.uvqk.weight.T)
    u, v, q, k = h.split(D, dim=1)
    rows = []
    for i in range(n):
        heads = []
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            mixed = torch.zeros(width, dtype=x.dtype)
            for j in range(i + 1):
                score = q[i, part] @ k[j, part] + block.bias.table[head, min(i - j, USERS.max_distance)]
                if clock and block.time_table is not None:
                    gap = max(times[i] - times[j], 1)
                    bucket = min(int(math.log(gap) / 0.301), N_BUCKETS - 1)
                    score = score + block.time_table[head, bucket]
                mixed = mixed + F.silu(score) / MAX_LEN * v[j, part]
            heads.append(mixed)
        rows.append(torch.cat(heads))
    mixed = F.layer_norm(torch.stack(rows), (D,), eps=1e-6)
    return x + (u * mixed) @ block.out.weight.T + block.out.bias


def naive(model: HSTUUserModel, x: Tensor, batch: Batch, clock: bool = True) -> Tensor:
    done = []
    for a, b in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        h = F.rms_norm(x[a:b], (D,), model.input_norm.weight)
        for block in model.blocks:
            assert isinstance(block, HSTUBlock)
            h = naive_block(block, h, batch.times[a:b].tolist(), clock)
        done.append(F.rms_norm(h, (D,), model.norm.weight))
    return torch.cat(done)


@pytest.mark.parametrize("row", [None, 48])
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("clock", [True, False])
def test_equals_the_formula_per_user(
    row: int | None, blocks: bool, clock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (x, batch) = model_of(), batch_of(LENGTHS)
    if blocks:
        monkeypatch.setattr(module, "MASK_ENTRIES", 4096)
    rows = make_rows(batch, row)
    assert (model.layout(rows, batch.signals).mask is None) == blocks
    ours = model(x, rows, replace(batch.signals, clock=clock))
    theirs = naive(model, x, batch, clock)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    weights = [p for n, p in model.named_parameters() if n != "mask_vector" and (clock or "time" not in n)]
    upstream = torch.randn(ours.shape, dtype=ours.dtype)
    for mine, reference in zip(
        torch.autograd.grad(ours, [x, *weights], upstream),
        torch.autograd.grad(theirs, [x, *weights], upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("time_bias", [True, False])
def test_the_contract_of_user_models(time_bias: bool) -> None:
    check_user_model(model_of(USERS.model_copy(update={"time_bias": time_bias})).eval(), D)


def test_case_d17_a_time_after_an_event_changes_nothing_before() -> None:
    """Not even the time of the very next event, which is that of the target."""
    model, (x, batch) = model_of(), batch_of([6])
    before = model(x, make_rows(batch), batch.signals)
    later = batch.times.clone()
    later[3:] += 10**8
    after = model(x, make_rows(batch), replace(batch.signals, times=later))
    assert torch.equal(before[:3], after[:3])
    assert bool(((before[3:] - after[3:]).abs().amax(1) > 1e-6).all())
    query = replace(batch.signals, query_time=torch.tensor([10**9]))
    assert torch.equal(before, model(x, make_rows(batch), query))


def test_left_over_slots_give_no_nan() -> None:
    model, (x, batch) = model_of(), batch_of([2])
    rows = make_rows(batch, row=16, n_rows=3)
    model(x, rows, Signals(batch.times)).sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
