"""Rows updated when they are needed, against dense AdamW with a weight average."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hllm.errors import ArtifactError, ConfigError
from hllm.train import lazy_rows as module
from hllm.train.lazy_rows import LazyRows
from hllm.train.optim import WeightAverage

EVERY = [
    1,
    10,
    50,
    200,
    450,
]  # steps between two updates of a row; 450 outlasts the momentum that is followed
PER_KIND, D, STEPS = 4, 8, 1000
SETTINGS: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1, "ema_decay": 0.99}
Step = Callable[[int, Tensor, Tensor, float], None]


def rate_of(step: int) -> float:
    """Warm-up, then a cosine."""
    return 1e-2 * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def rows_of(step: int) -> Tensor:
    """Rows that have a gradient at `step`; the kinds start at other steps, so that idle times are whole."""
    kinds = [k for k, every in enumerate(EVERY) if step % every == (3 * k) % every]
    return torch.tensor([k * PER_KIND + i for k in kinds for i in range(PER_KIND)], dtype=torch.long)


def start(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(len(EVERY) * PER_KIND, D, dtype=dtype) * 0.1


def run(
    step: Step, first: int = 0, last: int = STEPS, dtype: torch.dtype = torch.float32, size: float = 1.0
) -> None:
    """Gradients with a common direction and noise, of very different sizes from row to row."""
    for i in range(first, last):
        g = torch.Generator().manual_seed(i)
        rows = rows_of(i)
        noise = torch.randn(len(EVERY) * PER_KIND, D, generator=g, dtype=torch.float64)
        sizes = size * 10.0 ** -(torch.arange(len(noise)) % PER_KIND).double().unsqueeze(1)
        step(i, rows, ((noise + 0.3) * sizes).to(dtype)[rows], rate_of(i))


class Dense:
    """torch.optim.AdamW on every row at every step, and the average of the weights."""

    def __init__(self, weight: Tensor, ema_decay: float, **settings: Any) -> None:
        self.module = nn.ParameterList([nn.Parameter(weight.clone())])
        self.optimizer = torch.optim.AdamW(self.module.parameters(), **settings)
        self.average = WeightAverage(list(self.module.parameters()), ema_decay)

    def step(self, rows: Tensor, gradient: Tensor, rate: float) -> None:
        self.module[0].grad = torch.zeros_like(self.module[0]).index_copy_(0, rows, gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update()


def distances(lazy: Tensor, dense: Tensor, origin: Tensor) -> list[float]:
    """For each kind of row: norm of the difference over the norm of how far the dense rows went."""
    split = [x.reshape(len(EVERY), -1) for x in (lazy - dense, dense - origin)]
    return (split[0].norm(dim=1) / split[1].norm(dim=1)).tolist()


@pytest.mark.parametrize(
    ("dtype", "eps", "bound", "weight_decay", "ema_decay"),
    [
        (torch.float32, 1e-8, 1e-4, 0.1, 0.99),
        (torch.float64, 1e-13, 1e-7, 0.0, 0.9),
        (torch.float64, 1e-13, 1e-7, 1.0, 0.9999),
    ],
    ids=["float32", "float64 no decay", "float64 strong decay"],
)
def test_rows_go_where_dense_adamw_takes_them(
    dtype: torch.dtype, eps: float, bound: float, weight_decay: float, ema_decay: float
) -> None:
    """At the end, and whenever a row is read on the way."""
    origin = start(dtype)
    settings = {**SETTINGS, "eps": eps, "weight_decay": weight_decay, "ema_decay": ema_decay}
    dense, lazy = Dense(origin, **settings), LazyRows(origin.clone(), **settings)
    worst = 0.0

    def both(i: int, rows: Tensor, gradient: Tensor, rate: float) -> None:
        nonlocal worst
        lazy.lease(rows)
        if i > 50:
            now = dense.module[0].detach()
            gone = (now - origin)[rows].norm()
            worst = max(worst, float((lazy.weight - now)[rows].norm() / gone))
        lazy.step(rows, gradient, rate)
        dense.step(rows, gradient, rate)

    run(both, dtype=dtype)
    assert 0 < worst < bound
    assert max(distances(lazy.caught_up(), dense.module[0].detach(), origin)) < bound
    assert max(distances(lazy.caught_up(average=True), dense.average.average[0], origin)) < bound
    # The measure tells: rows as they lie, not caught up, are far off.
    assert max(distances(lazy.weight, dense.module[0].detach(), origin)) > 0.01


@pytest.mark.parametrize("size", [1e-5, 1e-7])
def test_gradients_as_small_as_eps(size: float) -> None:
    """Where eps counts beside sqrt(v) the sums are interpolated: still within 1%."""
    origin = start(torch.float32)
    dense, lazy = Dense(origin, **SETTINGS), LazyRows(origin.clone(), **SETTINGS)

    def both(i: int, rows: Tensor, gradient: Tensor, rate: float) -> None:
        lazy.lease(rows)
        lazy.step(rows, gradient, rate)
        dense.step(rows, gradient, rate)

    run(both, size=size)
    assert max(distances(lazy.caught_up(), dense.module[0].detach(), origin)) < 0.01
    assert max(distances(lazy.caught_up(average=True), dense.average.average[0], origin)) < 0.01


@pytest.mark.parametrize("cut", [1, 13, 249])
def test_resumes_to_the_same_bits(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving and reading in between change nothing either, nor does a history that is outgrown."""
    end = cut + 60

    def take(rows_: LazyRows, first: int, last: int, look: bool = False) -> None:
        def step(i: int, rows: Tensor, gradient: Tensor, rate: float) -> None:
            rows_.lease(rows)
            rows_.step(rows, gradient, rate)
            if look and i % 20 == 0:
                rows_.caught_up(), rows_.caught_up(average=True), rows_.state_dict()

        run(step, first, last)

    whole = LazyRows(start(torch.float32), **SETTINGS)
    take(whole, 0, end)
    monkeypatch.setattr(module, "CAPACITY", 8)
    begun = LazyRows(start(torch.float32), **SETTINGS)
    take(begun, 0, cut, look=True)
    saved = {name: value.clone() for name, value in begun.state_dict().items()}
    resumed = LazyRows(begun.weight.clone(), **SETTINGS)
    resumed.load_state_dict(saved)
    take(resumed, cut, end, look=True)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.caught_up(), whole.caught_up())
    assert torch.equal(resumed.caught_up(average=True), whole.caught_up(average=True))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_reading_is_leasing_and_a_second_lease_changes_no_bit() -> None:
    lazy = LazyRows(start(torch.float32), **SETTINGS)

    def step(i: int, rows: Tensor, gradient: Tensor, rate: float) -> None:
        lazy.lease(rows)
        lazy.step(rows, gradient, rate)

    run(step, 0, 60)
    rows = torch.arange(len(lazy.weight))
    now, some = lazy.caught_up(), lazy.caught_up(rows=rows[3:9])
    lazy.lease(rows)
    assert torch.equal(now, lazy.weight) and torch.equal(some, now[3:9])
    before = {"weight": lazy.weight.clone()} | {k: v.clone() for k, v in lazy.state_dict().items()}
    lazy.lease(rows)
    assert torch.equal(lazy.weight, before.pop("weight"))
    assert all(torch.equal(lazy.state_dict()[name], value) for name, value in before.items())


def test_entries_that_fill_up_a_fixed_shape_have_no_effect() -> None:
    exact, padded = (LazyRows(start(torch.float32), **SETTINGS) for _ in range(2))
    longest = PER_KIND * len(EVERY) + 3

    def step(i: int, rows: Tensor, gradient: Tensor, rate: float) -> None:
        rows, gradient = rows[rows > 0], gradient[rows > 0]  # row 0 is padding
        exact.lease(rows)
        exact.step(rows, gradient, rate)
        filled = torch.full((longest,), 5)
        filled[: len(rows)] = rows
        valid = torch.arange(longest) < len(rows)
        rubbish = torch.full((longest, D), float("nan"))
        rubbish[: len(rows)] = gradient
        padded.lease(filled, valid)
        padded.step(filled, rubbish, rate, valid)

    run(step, 0, 120)
    assert torch.equal(exact.caught_up()[1:], padded.caught_up()[1:])
    assert torch.equal(exact.caught_up(average=True)[1:], padded.caught_up(average=True)[1:])
    torch.testing.assert_close(exact.caught_up()[0], padded.caught_up()[0])  # it decays, nothing more


def test_without_an_average() -> None:
    lazy = LazyRows(start(torch.float32), weight_decay=0.1)
    with_one = LazyRows(start(torch.float32), **SETTINGS)
    for rows_ in (lazy, with_one):

        def step(i: int, rows: Tensor, gradient: Tensor, rate: float, rows_: LazyRows = rows_) -> None:
            rows_.lease(rows)
            rows_.step(rows, gradient, rate)

        run(step, 0, 60)
    assert torch.equal(lazy.caught_up(), with_one.caught_up())
    assert "average" not in lazy.state_dict()
    with pytest.raises(ConfigError, match="no average"):
        lazy.caught_up(average=True)


def test_settings_without_a_closed_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="beta1 < sqrt"):
        LazyRows(start(torch.float32), betas=(0.9, 0.8))
    with pytest.raises(ConfigError, match=r"learning rate 2 x weight decay 0\.5"):
        LazyRows(start(torch.float32), weight_decay=0.5).step(torch.tensor([1]), torch.zeros(1, D), 2.0)


def test_no_momentum_at_all() -> None:
    """beta1 = 0: an idle row only decays."""
    lazy = LazyRows(torch.ones(3, 2), betas=(0.0, 0.98), weight_decay=0.5)
    lazy.step(torch.tensor([1]), torch.ones(1, 2), 0.1)
    after = lazy.weight[1].clone()
    lazy.step(torch.tensor([2]), torch.ones(1, 2), 0.1)
    torch.testing.assert_close(lazy.caught_up()[1], after * 0.95)
    torch.testing.assert_close(lazy.caught_up()[0], torch.full((2,), 0.95**2))


@pytest.mark.parametrize("change", ["history", "average", "exp_avg"])
def test_a_state_of_other_rows_is_refused(change: str) -> None:
    state = LazyRows(start(torch.float32), **SETTINGS).state_dict()
    if change == "exp_avg":
        state[change] = state[change][1:]
    else:
        del state[change]
    with pytest.raises(ArtifactError, match="do not fit a table of"):
        LazyRows(start(torch.float32), **SETTINGS).load_state_dict(state)


def test_a_step_touches_the_leased_rows_alone() -> None:
    """No operation makes or reads a tensor of all rows, so the cost cannot follow their number."""
    from torch.utils._python_dispatch import TorchDispatchMode

    lazy = LazyRows(torch.zeros(20_000, D), **SETTINGS)
    largest = 0

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                in_place = any(x is a for a in args)
                largest = largest if in_place else max(largest, x.numel())
            return out

    with Made():
        for i in range(3):
            rows = torch.arange(i * 7, i * 7 + 20)
            lazy.lease(rows)
            lazy.step(rows, torch.ones(20, D), 1e-3)
    assert 20 * D <= largest <= 7 * module.CAPACITY
