"""Kernels of packed attention against one history at a time, in values and gradients; interpreted on a CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hllm.config import load_config
from hllm.kernels.attention import packed_attention
from hllm.models.timebias import LOG_STEP, N_BUCKETS, gap_buckets
from hllm.models.user_models import make_user_model
from hllm.packing import Batch, make_rows, offsets_of, one_row, padded

pytest.importorskip("triton")
HEADS, WIDTH = 2, 16


@pytest.fixture(scope="module")
def device() -> torch.device:
    """A GPU; without one, the CPU with Triton interpreted (conftest.py)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def one_at_a_time(
    qkv: Tensor,
    lengths: list[int],
    by_distance: Tensor | None,
    by_gap: Tensor | None,
    seconds: Tensor,
    n: float,
) -> Tensor:
    a, b, c = qkv.unbind(1)
    q, k, v = (b, c, a) if n else (a, b, c)
    out, first = [], 0
    for length in lengths:
        own = slice(first, first + length)
        scores = torch.einsum("ihd,jhd->hij", q[own], k[own]) * (1 if n else WIDTH**-0.5)
        i = torch.arange(length, device=q.device)
        distance = i[:, None] - i
        if by_distance is not None:
            scores = scores + by_distance[:, distance.clamp(min=0)]
        if by_gap is not None:
            scores = scores + by_gap[:, gap_buckets(seconds[None, own], seconds[None, own])[0, 0]]
        if n:
            weights = (F.silu(scores) / n).masked_fill(distance < 0, 0)
        else:
            weights = scores.masked_fill(distance < 0, -torch.inf).softmax(-1)
        out.append(torch.einsum("hij,jhd->ihd", weights, v[own]))
        first += length
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [[5, 70, 1, 3], [64, 66]])
@pytest.mark.parametrize(
    ("n", "biased", "timed"),
    [(0.0, True, False), (0.0, False, False), (20.0, True, True), (20.0, False, True)],
)
def test_equals_attention_one_history_at_a_time(
    lengths: list[int], n: float, biased: bool, timed: bool, device: torch.device
) -> None:
    torch.manual_seed(0)
    total = sum(lengths)
    packed = torch.randn(total, 4, HEADS, WIDTH, device=device, requires_grad=True)
    qkv = packed[:, 1:]  # a token's in one piece, tokens apart, as HSTU's are
    by_distance = torch.randn(HEADS, max(lengths), device=device, requires_grad=True) if biased else None
    by_gap = torch.randn(HEADS, N_BUCKETS, device=device, requires_grad=True) if timed else None
    seconds = torch.randint(0, 5000, (total,), device=device).cumsum(0)
    ones = torch.ones(total, dtype=torch.long)
    batch = Batch(torch.arange(len(lengths)), ones, ones, ones, offsets_of(torch.tensor(lengths)))
    bounds = one_row(batch, total, max(lengths)).to(device).bounds
    assert bounds is not None
    given = seconds if timed else None
    ours, _ = packed_attention(qkv, bounds, by_distance, by_gap, given, LOG_STEP, n)
    theirs = one_at_a_time(qkv, lengths, by_distance, by_gap, seconds, n)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    inputs = [packed, *(x for x in (by_distance, by_gap) if x is not None)]
    upstream = torch.randn_like(ours)
    expected = torch.autograd.grad(theirs, inputs, upstream)
    for mine, reference in zip(torch.autograd.grad(ours, inputs, upstream), expected, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5 * float(reference.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("preset", ["hllm-lite", "hstu", "sasrec-paper"])
def test_models_by_bounds_equal_models_by_rows(preset: str, device: torch.device) -> None:
    """With left-over tokens, whose states nobody reads."""
    torch.manual_seed(0)
    small = {"n_layers": 1, "n_heads": 2, "dropout": 0.0, "d_model": 32, "max_len": 80}
    config = load_config(preset, overrides=small)
    model = make_user_model(config.users, config.scorer, 32, 80)
    assert isinstance(model, torch.nn.Module) and getattr(model, "by_bounds", False)
    model.to(device).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    lengths = torch.tensor([40, 3, 30])
    ones = torch.ones(73, dtype=torch.long)
    batch = Batch(torch.arange(3), ones, torch.arange(73) ** 3, ones, offsets_of(lengths))
    long = padded(batch, 80, one_row(batch, 80, 80))
    assert long.rows is not None
    x = torch.randn(80, 32, device=device)
    found = []
    for rows, signals, n in (
        (make_rows(batch), batch.to(device).signals, 73),
        (long.rows, long.to(device).signals, 80),
    ):
        hidden = model(x[:n], rows.to(device), signals)[:73]
        grads = torch.autograd.grad(hidden.pow(3).sum(), list(model.parameters()), allow_unused=True)
        found.append([hidden, *(g for g in grads if g is not None)])
    for by_rows, by_bounds in zip(*found, strict=True):
        torch.testing.assert_close(
            by_bounds, by_rows, atol=1e-4 * float(by_rows.detach().abs().max()), rtol=1e-3
        )
