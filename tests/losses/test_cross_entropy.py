"""The chunked loss against torch's, in value and gradient, and what it holds in memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hllm.losses import cross_entropy as module
from hllm.losses.cross_entropy import cross_entropy

T, M, D = 23, 17, 6


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    queries = torch.randn(T, D, dtype=dtype, requires_grad=True)
    items = torch.randn(M, D, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, M, (T,))
    targets[[0, 7, 8, 22]] = -1
    return queries, items, targets


def reference(queries: Tensor, items: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(queries @ items.T, targets, ignore_index=-1, label_smoothing=smoothing)


@pytest.mark.parametrize("chunk", [1, 4, 23, 100, None])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_equals_torch(chunk: int | None, smoothing: float) -> None:
    queries, items, targets = inputs()
    ours = cross_entropy(queries, items, targets, smoothing, chunk)
    theirs = reference(queries, items, targets, smoothing)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    mine = torch.autograd.grad(ours * 3, [queries, items])
    expected = torch.autograd.grad(theirs * 3, [queries, items])
    for gradient, wanted in zip(mine, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=0)


def test_positions_without_a_target_do_not_count() -> None:
    queries, items, targets = inputs()
    kept = targets >= 0
    loss = cross_entropy(queries, items, targets, 0.1, 5)
    torch.testing.assert_close(loss, cross_entropy(queries[kept], items, targets[kept], 0.1, 5))
    (gradient,) = torch.autograd.grad(loss, queries)
    assert not gradient[~kept].any()
    assert bool((gradient[kept] != 0).any(1).all())


def test_nothing_to_predict_is_zero() -> None:
    queries, items, targets = inputs()
    loss = cross_entropy(queries, items, torch.full_like(targets, -1), 0.1)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, queries)[0].any()


def test_large_scores_stay_finite() -> None:
    queries, items, targets = inputs(torch.float32)
    loss = cross_entropy(queries * 1e4, items, targets)
    gradients = torch.autograd.grad(loss, [queries, items])
    assert all(bool(torch.isfinite(x).all()) for x in (loss, *gradients))


def test_bf16_products_accumulate_wide() -> None:
    queries, items, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(queries, items, targets, 0.1, 8)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference(queries, items, targets, 0.1), atol=0.05, rtol=0)
    assert torch.autograd.grad(loss, queries)[0].dtype == torch.float32


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_of_tokens_times_items_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, items, targets = inputs()
    with Largest() as seen:
        reference(queries, items, targets, 0.1).backward()
    assert seen.elements == T * M  # the measure itself works
    with Largest() as seen:
        cross_entropy(queries, items, targets, 0.1, 4).backward()
    assert seen.elements <= max(4 * M, T * D, M * D)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 3 * M)
    with Largest() as seen:
        cross_entropy(queries, items, targets, 0.1).backward()
    assert seen.elements <= max(3 * M, T * D, M * D)
