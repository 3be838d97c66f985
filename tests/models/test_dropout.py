"""Dropout by 16 random bits a number: as often, as large and as reproducible as PyTorch's."""

from __future__ import annotations

import pytest
import torch

from hllm.models.block import Dropout


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_drops_a_share_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(501, 399, dtype=dtype, requires_grad=True)  # no multiple of 4
    y = Dropout(p)(x)
    assert y.dtype == dtype
    assert float((y == 0).float().mean()) == pytest.approx(p, abs=0.005)
    kept = y[y != 0]
    assert bool((kept == kept[0]).all()) and kept[0].item() == pytest.approx(1 / (1 - p), rel=5e-3)
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(400_000)) > 0).float().view(-1, 4)
    correlation = torch.corrcoef(torch.cat((kept[:-1], kept[1:]), dim=1).T)
    assert float((correlation - torch.eye(8)).abs().max()) < 0.02


def test_goes_by_the_seed_and_does_nothing_in_evaluation() -> None:
    x, layer = torch.ones(1000), Dropout(0.3)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)
