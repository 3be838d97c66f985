"""In-batch negatives as the protocol defines them, and the objective that a configuration names."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hllm.config import load_config
from hllm.losses.in_batch import in_batch
from hllm.losses.objective import make_objective, users_of_tokens
from hllm.losses.sampled import history_keys
from hllm.packing import Batch, ItemView, make_rows, offsets_of

LENGTHS = [4, 1, 7, 3]
M, D = 11, 6


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(5)
    lengths = torch.tensor(LENGTHS)
    n = int(lengths.sum())
    return Batch(
        users=torch.tensor([30, 10, 20, 10]),  # user 10 has two windows
        tokens=torch.randint(1, M + 1, (n,), generator=g),
        times=torch.zeros(n, dtype=torch.long),
        targets=torch.randint(0, M + 1, (n,), generator=g),
        offsets=offsets_of(lengths),
    )


@pytest.fixture
def vectors() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(6)
    n = sum(LENGTHS)
    q = torch.randn(n, D, generator=g, dtype=torch.float64, requires_grad=True)
    return q, torch.randn(M, D, generator=g, dtype=torch.float64, requires_grad=True)


def naive(
    q: Tensor, items: Tensor, targets: Tensor, users: Tensor, log_q: Tensor | None, own: list[set[int]]
) -> Tensor:
    """The definition, word by word: the targets of other users, but never one's own item."""
    losses = []
    for i, (target, user) in enumerate(zip(targets.tolist(), users.tolist(), strict=True)):
        if target < 0:
            continue
        classes = [target] + [
            other
            for other, owner in zip(targets.tolist(), users.tolist(), strict=True)
            if other >= 0 and owner != user and other != target and other not in own[i]
        ]
        scores = q[i] @ items[classes].T
        if log_q is not None:
            scores = scores - log_q[classes]
        losses.append(F.cross_entropy(scores.unsqueeze(0), torch.zeros(1, dtype=torch.long)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("logq", [False, True])
@pytest.mark.parametrize(("mask_history", "whole"), [(False, False), (True, False), (True, True)])
def test_the_objective_is_the_definition(
    batch: Batch, vectors: tuple[Tensor, Tensor], logq: bool, mask_history: bool, whole: bool
) -> None:
    """With `whole` histories, users have met more than their windows hold."""
    q, items = vectors
    users = torch.tensor([30, 10, 20, 10]).repeat_interleave(torch.tensor(LENGTHS))
    counts = torch.arange(1, M + 1)
    rows = torch.arange(-1, M)  # token t is row t - 1
    targets = torch.where(batch.targets > 0, rows[batch.targets], -1)
    config = load_config(
        "hllm-lite",
        overrides={
            "loss": "in_batch",
            "label_smoothing": 0,
            "logq": logq,
            "mask_history": mask_history,
            "loss_temperature": 0.5,
        },
    )
    log_q = (counts / counts.sum()).log() if logq else None
    view = ItemView(
        torch.arange(1, M + 1), batch.tokens - 1, targets, M, log_q=None if log_q is None else log_q.float()
    )
    met = [(u, int(t)) for u in (10, 20, 30) for t in batch.tokens[users == u]]
    met += [(10, 1), (10, M), (20, 2), (20, 3), (99, 4)] if whole else []
    history = history_keys(*torch.tensor(met).T) if whole else None
    ours = make_objective(config.objective, history)(q, items, batch, view)
    own = [{t - 1 for of, t in met if of == u} if mask_history else set[int]() for u in users.tolist()]
    theirs = naive(q / 0.5, items, targets, users, log_q, own)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # log_q is float32 in training
    for mine, plain in zip(
        torch.autograd.grad(ours, (q, items)), torch.autograd.grad(theirs, (q, items)), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


def test_a_limit_takes_that_many_of_the_targets(vectors: tuple[Tensor, Tensor]) -> None:
    """With vectors that are all alike the loss says how many negatives there were."""
    n = sum(LENGTHS)
    targets = torch.arange(n) % M
    targets[3] = -1  # never among the drawn
    users = torch.arange(n)
    losses = set()
    for seed in range(5):
        torch.manual_seed(seed)
        loss = in_batch(torch.zeros(n, D), torch.zeros(M, D), targets, users, n_negatives=n - 1)
        losses.add(round(float(loss), 6))
    all_of_them = in_batch(torch.zeros(n, D), torch.zeros(M, D), targets, users)
    assert losses == {round(float(all_of_them), 6)}
    few = in_batch(torch.zeros(n, D), torch.zeros(M, D), targets, users, n_negatives=4)
    assert math.log(3) < float(few) <= math.log(5) + 1e-6  # at most one of the four is one's own item


def test_the_sum_is_divided_by_the_count_given(vectors: tuple[Tensor, Tensor]) -> None:
    q, items = vectors
    targets = torch.arange(len(q)) % M
    users = torch.arange(len(q))
    mean = in_batch(q, items, targets, users)
    torch.testing.assert_close(in_batch(q, items, targets, users, count=torch.tensor(60)), mean * len(q) / 60)


def test_a_batch_of_one_user_has_no_negatives() -> None:
    loss = in_batch(torch.randn(5, D), torch.randn(M, D), torch.arange(5), torch.zeros(5, dtype=torch.long))
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_users_of_positions_with_and_without_planned_rows(batch: Batch) -> None:
    from dataclasses import replace

    expected = torch.tensor([30, 10, 20, 10]).repeat_interleave(torch.tensor(LENGTHS))
    assert torch.equal(users_of_tokens(batch), expected)
    assert torch.equal(users_of_tokens(replace(batch, rows=make_rows(batch, row=16))), expected)


def test_nce_is_cross_entropy_with_a_temperature(batch: Batch, vectors: tuple[Tensor, Tensor]) -> None:
    q, items = vectors
    rows = torch.arange(-1, M)
    targets = torch.where(batch.targets > 0, rows[batch.targets], -1)
    config = load_config("rechub-doc")
    view = ItemView(torch.arange(1, M + 1), batch.tokens - 1, targets, M)
    loss = make_objective(config.objective)(q, items, batch, view)
    torch.testing.assert_close(loss, F.cross_entropy(q @ items.T / 0.1, targets, ignore_index=-1))
