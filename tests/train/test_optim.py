"""Optimiser groups, the learning-rate schedule, and the weight average."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hllm.config import Config
from hllm.items.source.ids import Ids
from hllm.train.config import TrainingConfig
from hllm.train.optim import Optimizer, WeightAverage, evaluation_weights, learning_rate


def test_matrices_decay_and_vectors_do_not(make_config: Callable[..., Config]) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4))
    network[0].requires_grad_(True)
    optimizer = Optimizer(network, make_config(weight_decay=0.2).training)
    assert isinstance(optimizer.dense, torch.optim.AdamW)
    decay = {id(p): group["weight_decay"] for group in optimizer.dense.param_groups for p in group["params"]}
    assert decay[id(network[0].weight)] == 0.2
    assert decay[id(network[0].bias)] == decay[id(network[1].weight)] == 0.0
    optimizer.set_rate(0.125)
    assert [group["lr"] for group in optimizer.dense.param_groups] == [0.125, 0.125]


def test_rate_rises_linearly_then_falls_as_a_cosine(make_config: Callable[..., Config]) -> None:
    config = make_config(learning_rate=0.1, warmup_ratio=0.2, min_lr_ratio=0.1).training
    assert learning_rate(config, 0.1) == pytest.approx(0.05)
    assert learning_rate(config, 0.2) == pytest.approx(0.1)
    assert learning_rate(config, 0.6) == pytest.approx(0.1 * (0.1 + 0.9 * 0.5))
    assert learning_rate(config, 1.0) == pytest.approx(0.01)
    assert 0 < learning_rate(config, 0.0) < 0.001
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    assert learning_rate(config, 0.4) == pytest.approx(0.1 * (0.1 + 0.9 * quarter))


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_all_or_no_warm_up(make_config: Callable[..., Config], ratio: float) -> None:
    config = make_config(learning_rate=0.1, warmup_ratio=ratio, min_lr_ratio=0.1).training
    rates = [learning_rate(config, i / 10) for i in range(10)]
    assert rates == sorted(rates, reverse=ratio == 0.0)
    assert max(rates) <= 0.1


def test_the_average_is_exponential_with_a_warm_up() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    average = WeightAverage(list(network.parameters()), decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 3.0, -2.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]):
        nn.init.constant_(network.weight, value)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert float(average.average[0]) == pytest.approx(expected, rel=1e-6)


def test_averaged_weights_come_and_go() -> None:
    network = nn.Linear(2, 2)
    optimizer = Optimizer(network, TrainingConfig())
    average = WeightAverage(optimizer.parameters, 0.9)
    start = network.weight.detach().clone()
    with torch.no_grad():
        network.weight.add_(1.0)
    raw = network.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), evaluation_weights(average, optimizer):
        assert torch.equal(network.weight, start)
        _ = 1 / 0
    assert torch.equal(network.weight, raw)


def test_validating_copies_no_weights() -> None:
    """Raw and averaged weights change places; lazy rows have their caught-up values, and go on from where they were."""
    network = nn.ModuleDict({"ids": Ids(9, 4, torch.arange(10) > 0), "head": nn.Linear(4, 4, bias=False)})
    optimizer = Optimizer(network, TrainingConfig(), lazy=True)
    average = WeightAverage(optimizer.parameters, 0.9)
    head, ids = network.get_parameter("head.weight"), network.get_parameter("ids.weight")
    places = head.data_ptr(), ids.data_ptr()
    with evaluation_weights(average, optimizer):
        assert head.data_ptr() == average.average[0].data_ptr()
        assert ids.data_ptr() not in (places[1], optimizer.lazy[0].rows.average.data_ptr())
    assert (
        (head.data_ptr(), ids.data_ptr()) == places == (places[0], optimizer.lazy[0].rows.weight.data_ptr())
    )


def test_what_is_saved_is_the_average(train: Callable[..., Any]) -> None:
    """With averaging the weights differ from those without, which are the trained ones themselves."""
    with_average, _ = train(ema_decay=0.9, epochs=1)
    without, _ = train(ema_decay=0.0, epochs=1)
    assert not torch.equal(*(n.get_parameter("source.parts.ids.weight") for n in (with_average, without)))


def test_lazy_rows_count_in_the_common_clip() -> None:
    """The norm is that of all gradients, of rows and of dense weights; a step without rows counts as one."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"ids": Ids(9, 4, torch.arange(10) > 0), "head": nn.Linear(4, 4, bias=False)})
    optimizer = Optimizer(network, TrainingConfig(), lazy=True)
    ids = network["ids"]
    assert isinstance(ids, Ids)
    lease = ids.lease(torch.tensor([2, 5]))
    lease.vectors.grad = torch.full((2, 4), 3.0)
    lease.backward()
    (network["head"].weight * 4.0).sum().backward()
    total = math.sqrt(8 * 9.0 + 16 * 16.0)
    untouched = ids.weight[[1, 3]].clone()
    pending = optimizer.lazy[0].grad
    assert pending is not None
    optimizer.step(1.0)
    torch.testing.assert_close(pending, torch.full((2, 4), 3.0 / total), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        network["head"].weight.grad, torch.full((4, 4), 4.0 / total), rtol=1e-5, atol=0
    )
    assert torch.equal(ids.weight[[1, 3]], untouched) and not ids.weight.requires_grad
    optimizer.step(1.0)
    assert optimizer.lazy[0].rows.history.steps == 2


def test_dense_and_lazy_updates_of_rows_agree(train: Callable[..., Any]) -> None:
    """Every row is touched at every step of the full softmax: lazily updated rows are then dense ones."""
    dense, lazy = (train(id_updates=how, epochs=2)[0] for how in ("dense", "lazy"))
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(lazy.state_dict()[name], value, rtol=1e-3, atol=1e-5, msg=name)
