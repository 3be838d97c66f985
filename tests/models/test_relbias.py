"""The relative bias against a gather by distance, in values and gradients."""

from __future__ import annotations

import pytest
import torch

from hllm.models.relbias import RelativePositionBias, by_distance_block, by_distance_matrix


@pytest.mark.parametrize(("max_distance", "length"), [(8, 5), (8, 9), (8, 10), (3, 16), (1, 7), (6, 1)])
def test_equals_gathering_by_distance(max_distance: int, length: int) -> None:
    torch.manual_seed(0)
    module = RelativePositionBias(2, max_distance).double()
    torch.nn.init.normal_(module.table)
    distance = torch.arange(length)[:, None] - torch.arange(length)
    gathered = module.table[:, distance.clamp(0, max_distance)] * (distance >= 0)
    bias = by_distance_matrix(module(length))
    assert bias.shape == (2, length, length)
    assert torch.equal(bias, gathered)
    upstream = torch.randn_like(bias)
    mine, reference = (torch.autograd.grad(x, module.table, upstream)[0] for x in (bias, gathered))
    torch.testing.assert_close(mine, reference, atol=1e-12, rtol=0)
    block = by_distance_block(module(length), length // 2, length, length)
    assert torch.equal(block, gathered[:, length // 2 :])


def test_starts_at_zero_with_one_number_per_head_and_distance() -> None:
    module = RelativePositionBias(4, 256)
    assert module.table.shape == (4, 257)
    assert module(20).shape == (4, 20) and not module(20).any()
