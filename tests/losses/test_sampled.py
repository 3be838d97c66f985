"""Sampled softmax against a plain one, in values and gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hllm.artifacts import read_tensors
from hllm.config import load_config
from hllm.errors import TrainingError
from hllm.items.embeddings import ItemEmbeddings
from hllm.losses.sampled import draw, history_keys, sampled_softmax, similar_share
from hllm.packing import ItemView
from hllm.runs.folder import run_state
from hllm.runs.train import train_network
from hllm.testing import chain

T, K, M, D, USERS = 37, 23, 19, 5, 6


def naive(
    queries: Tensor, items: Tensor, targets: Tensor, columns: Tensor, log_q: Tensor | None, forbidden: Tensor
) -> Tensor:
    """One row at a time, with everything in full. forbidden bool (T, K)."""
    losses = []
    for i, target in enumerate(targets.tolist()):
        if target < 0:
            continue
        kept = [k for k in columns[~forbidden[i] & (columns >= 0)].tolist() if k != target]
        classes = torch.tensor([target, *kept])
        scores = items[classes] @ queries[i]
        if log_q is not None:
            scores = scores - log_q[classes]
        losses.append(F.cross_entropy(scores.unsqueeze(0), torch.zeros(1, dtype=torch.long)))
    return torch.stack(losses).mean()


@pytest.fixture
def problem() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)

    def integers(low: int, high: int, n: int) -> Tensor:
        return torch.randint(low, high, (n,), generator=g)

    return {
        "queries": torch.randn(T, D, generator=g, dtype=torch.float64, requires_grad=True),
        "items": torch.randn(M, D, generator=g, dtype=torch.float64, requires_grad=True),
        "targets": integers(-1, M, T),
        "columns": integers(-1, M, K),  # with repeated items, and some columns empty
        "log_q": torch.rand(M, generator=g, dtype=torch.float64).log(),
        "users": integers(0, USERS, T),
        "column_users": integers(0, USERS, K),
        "history": integers(0, M, T),
    }


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("correct", [False, True], ids=["plain", "logq"])
@pytest.mark.parametrize("masks", ["identity", "users", "users+history"])
def test_values_and_gradients_match_a_plain_softmax(
    problem: dict[str, Tensor], chunk: int, correct: bool, masks: str
) -> None:
    q, items, targets, columns, users = (
        problem[k] for k in ("queries", "items", "targets", "columns", "users")
    )
    log_q = problem["log_q"] if correct else None
    forbidden = torch.zeros(T, K, dtype=torch.bool)
    options: dict[str, Tensor | None] = {"log_q": log_q}
    if masks != "identity":
        options |= {"users": users, "column_users": problem["column_users"]}
        forbidden |= users[:, None] == problem["column_users"][None, :]
    if masks == "users+history":
        options["seen"] = history_keys(users, problem["history"])
        for i, user in enumerate(users.tolist()):
            own = set(problem["history"][users == user].tolist())
            forbidden[i] |= torch.tensor([int(c) in own for c in columns])
    ours = sampled_softmax(q, items, targets, columns, chunk=chunk, **options)
    theirs = naive(q, items, targets, columns, log_q, forbidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, plain in zip(
        torch.autograd.grad(ours, (q, items)), torch.autograd.grad(theirs, (q, items)), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-12)


def test_it_is_full_cross_entropy_when_every_other_item_is_a_negative(problem: dict[str, Tensor]) -> None:
    q, items = problem["queries"], problem["items"]
    targets = problem["targets"]
    ours = sampled_softmax(q, items, targets, torch.arange(M))
    full = F.cross_entropy(q @ items.T, targets, ignore_index=-1)
    torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)


def test_parts_of_a_batch_divide_by_its_count(problem: dict[str, Tensor]) -> None:
    q, items, targets, columns = (problem[k] for k in ("queries", "items", "targets", "columns"))
    count, cut = (targets >= 0).sum(), 11
    parts = sum(
        sampled_softmax(q[s], items, targets[s], columns, count=count) for s in (slice(0, cut), slice(cut, T))
    )
    whole = sampled_softmax(q, items, targets, columns)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    mine, expected = (torch.autograd.grad(loss, (q, items)) for loss in (parts, whole))
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_frozen_items_get_no_gradient(problem: dict[str, Tensor]) -> None:
    q, items, targets, columns = (problem[k] for k in ("queries", "items", "targets", "columns"))
    (expected,) = torch.autograd.grad(sampled_softmax(q, items, targets, columns), q)
    (mine,) = torch.autograd.grad(sampled_softmax(q, items.detach(), targets, columns), q)
    assert torch.equal(mine, expected)


def test_a_view_of_the_batchs_items_gives_the_loss_of_the_catalogue(problem: dict[str, Tensor]) -> None:
    """Rows of a compact view, with its items' log_q and history, stand for the same items."""
    q, items, targets, columns, users = (
        problem[k] for k in ("queries", "items", "targets", "columns", "users")
    )
    columns = columns.where(columns < 9, -1)  # so that the view leaves items out
    kept = torch.cat([targets, columns]).unique()
    kept = kept[kept >= 0]
    rows = torch.full((M + 1,), -1)  # the last for what is not there
    rows[kept] = torch.arange(len(kept))
    history = problem["history"]
    seen = history_keys(users, history)
    whole = sampled_softmax(q, items, targets, columns, log_q=problem["log_q"], users=users, seen=seen)
    own = {"log_q": problem["log_q"][kept], "users": users, "seen": seen, "tokens": kept}
    view = sampled_softmax(q, items[kept], rows[targets], rows[columns], **own)
    torch.testing.assert_close(view, whole, rtol=1e-12, atol=1e-12)
    mine, expected = (torch.autograd.grad(loss, (q, items)) for loss in (view, whole))
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_uniform_correction_changes_nothing(problem: dict[str, Tensor]) -> None:
    args = [problem[k] for k in ("queries", "items", "targets", "columns")]
    even = torch.full((M,), math.log(1 / M), dtype=torch.float64)
    torch.testing.assert_close(sampled_softmax(*args, log_q=even), sampled_softmax(*args))


def test_collapsed_vectors_do_not_look_solved() -> None:
    """bytedance/HLLM#15, #33: negatives too close to the positive were dropped, and the loss stayed 0."""
    vectors = torch.ones(512, 8)
    columns = torch.arange(1, 512)
    loss = sampled_softmax(torch.ones(4, 8), vectors, torch.zeros(4, dtype=torch.long), columns)
    assert float(loss) == pytest.approx(math.log(512), abs=1e-5)
    assert float(loss) == pytest.approx(6.238, abs=1e-3)


def test_nothing_to_predict_is_no_loss_and_no_gradient() -> None:
    q = torch.randn(3, 4, requires_grad=True)
    items = torch.randn(5, 4, requires_grad=True)
    loss = sampled_softmax(q, items, torch.full((3,), -1), torch.tensor([1, 2]))
    loss.backward()
    assert loss.item() == 0
    assert q.grad is not None and items.grad is not None
    assert not q.grad.any() and not items.grad.any()


def test_draws_follow_the_probabilities_and_never_take_an_impossible_item() -> None:
    torch.manual_seed(0)
    share = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3], dtype=torch.float64)
    found = torch.bincount(draw(share.cumsum(0), 20_000), minlength=5) / 20_000
    assert found[0] == 0 and found[3] == 0
    torch.testing.assert_close(found.double(), share, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("hllm-lite", {"d_model": 16, "n_heads": 2, "n_layers": 1, "id_embedding": False}),
        ("rechub", {"n_layers": 1}),
        ("rechub-doc", {"n_layers": 1}),
    ],
)
def test_training_on_identical_items_stops_with_the_reason(
    preset: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Case D14: 512 identical item rows, sampled loss, 511 negatives; nothing of it may count as the best."""
    data = chain(n_users=512, n_items=512, length=12)
    assert int((data.train_counts() > 0).sum()) == 512
    vectors = np.ones((513, 8), dtype=np.float32)
    vectors[0] = 0
    embeddings = ItemEmbeddings(vectors, vectors.any(1), {"key": "same"})
    loss = {"loss": "sampled", "n_negatives": 511, "label_smoothing": 0}
    config = load_config(
        preset, overrides={"max_len": 8, "epochs": 2, "batch_tokens": 512, **loss, **settings}
    )
    with pytest.raises(TrainingError, match="collapsed to one direction in epoch 1"):
        train_network(data, config, embeddings, torch.device("cpu"), tmp_path / "run", show=False)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.safetensors"
    assert not checkpoint.exists() or not [k for k in read_tensors(checkpoint)[0] if k.startswith("best.")]
    assert run_state(tmp_path / "run") == "unfinished"


@pytest.mark.parametrize("limit", [0.2, 0.9])
def test_negatives_too_like_the_target_are_left_out(problem: dict[str, Tensor], limit: float) -> None:
    """ByteDance's rule, by cosine; the target's own item stays out by identity as ever."""
    p, items = problem, F.normalize(problem["items"].detach(), dim=1)
    cosines = items[p["targets"].clamp(min=0)] @ items[p["columns"].clamp(min=0)].T
    expected = naive(p["queries"], p["items"], p["targets"], p["columns"], None, cosines > limit)
    wanted = torch.autograd.grad(expected, (p["queries"], p["items"]))
    loss = sampled_softmax(p["queries"], p["items"], p["targets"], p["columns"], drop_similar=limit, chunk=5)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, (p["queries"], p["items"])), wanted)
    assert not torch.isclose(loss, sampled_softmax(p["queries"], p["items"], p["targets"], p["columns"]))


def test_case_d14_identical_vectors_leave_nothing_to_compete() -> None:
    """By identity the loss is log 512; by likeness it is 0, and every negative is reported as masked."""
    items, columns = torch.ones(512, 4), torch.arange(1, 512)
    queries, targets = torch.randn(3, 4), torch.zeros(3, dtype=torch.long)
    assert float(sampled_softmax(queries, items, targets, columns)) == pytest.approx(math.log(512))
    assert float(sampled_softmax(queries, items, targets, columns, drop_similar=0.99)) == 0.0
    view = ItemView(torch.arange(512), targets, targets, 512, negatives=columns)
    assert similar_share(items, view, 0.99) == 1.0
    assert similar_share(torch.eye(512), view, 0.99) == 0.0


def test_a_narrow_table_rounds_its_gradient_once() -> None:
    torch.manual_seed(0)
    queries, table = torch.randn(40, 8), torch.randn(30, 8).bfloat16()
    targets, columns = torch.randint(5, (40,)), torch.randint(30, (20,))
    grads = []
    for items in (table.clone().requires_grad_(), table.float().requires_grad_()):
        sampled_softmax(queries, items, targets, columns).backward()
        assert items.grad is not None
        grads.append(items.grad)
    assert grads[0].dtype == torch.bfloat16
    torch.testing.assert_close(grads[0].float(), grads[1], rtol=2**-8, atol=0)
