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


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


@pytest.mark.parametrize("chunk", [1, 5, 23, None])
@pytest.mark.parametrize("item_chunk", [1, 4, 16, 17])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_tiles_along_both_axes_equal_torch(chunk: int | None, item_chunk: int, smoothing: float) -> None:
    queries, items, targets = inputs()
    ours = cross_entropy(queries, items, targets, smoothing, chunk, item_chunk=item_chunk)
    theirs = reference(queries, items, targets, smoothing)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    mine, expected = gradients(ours * 3, queries, items), gradients(theirs * 3, queries, items)
    torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tiles_in_single_precision(smoothing: float) -> None:
    queries, items, targets = inputs(torch.float32)
    ours = cross_entropy(queries, items, targets, smoothing, 5, item_chunk=4)
    theirs = reference(queries, items, targets, smoothing)
    torch.testing.assert_close(ours, theirs)
    mine, expected = gradients(ours, queries, items), gradients(theirs, queries, items)
    torch.testing.assert_close(mine, expected)


def test_one_tile_of_all_items_is_what_a_chunk_of_positions_is() -> None:
    """Bit for bit: runs on small catalogues do not change."""
    queries, items, targets = inputs(torch.float32)
    whole = cross_entropy(queries, items, targets, 0.1, T)
    tiles = cross_entropy(queries, items, targets, 0.1)
    assert torch.equal(whole, tiles)
    for a, b in zip(gradients(whole, queries, items), gradients(tiles, queries, items), strict=True):
        assert torch.equal(a, b)


def test_tile_shapes() -> None:
    """All items where many positions fit beside them, else a shape that keeps products large."""
    budget = module.CHUNK_LOGITS
    assert module.tile_shape(16_384, 3_706) == (budget // 3_706, 3_706)
    assert module.tile_shape(8_192, 131_072) == (256, 131_072)
    assert module.tile_shape(8_192, 1_000_000) == (4_096, 8_192)
    assert module.tile_shape(8_192, 10_000_000) == (4_096, 8_192)
    assert module.tile_shape(8_192, 10_000_000, "cpu") == (1_024, 2_048)
    assert module.tile_shape(8_192, 3_706, "cpu") == (256, 3_706)  # what a cache holds
    assert module.tile_shape(8_192, 500, "cpu") == (1_048, 500)
    assert module.tile_shape(20, 1_000_000) == (33, 1_000_000)  # all of the few positions at once
    assert module.tile_shape(20, 10_000_000) == (20, budget // 20)
    assert module.tile_shape(0, 5) == (budget // 5, 5)


@pytest.mark.parametrize("item_chunk", [None, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_parts_of_a_batch_divide_by_its_count(item_chunk: int | None, smoothing: float) -> None:
    """Two ranks' losses sum to the loss of both, and so do their gradients, however the targets fall."""
    queries, items, targets = inputs()
    count = (targets >= 0).sum()
    parts = [
        cross_entropy(queries[s], items, targets[s], smoothing, item_chunk=item_chunk, count=count)
        for s in (slice(0, 9), slice(9, T))
    ]
    whole = reference(queries, items, targets, smoothing)
    torch.testing.assert_close(sum(parts), whole, atol=1e-12, rtol=0)
    mine, expected = gradients(sum(parts), queries, items), gradients(whole, queries, items)
    torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)


def test_frozen_items_get_no_gradient() -> None:
    queries, items, targets = inputs()
    few, frozen = queries[:5].detach().requires_grad_(), items.detach()
    (expected,) = gradients(reference(few, items, targets[:5], 0.1), few)
    for item_chunk in (None, 4):
        with Largest() as seen:
            loss = cross_entropy(few, frozen, targets[:5], 0.1, item_chunk=item_chunk)
            (mine,) = gradients(loss, few)
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=0)
    assert seen.elements < M * D


def test_tiles_spend_their_gradient_once() -> None:
    """It is scaled in place; a second backward is an error, not a wrong number."""
    queries, items, targets = inputs()
    loss = cross_entropy(queries, items, targets, 0.1, item_chunk=4)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_positions_without_a_target_do_not_count() -> None:
    queries, items, targets = inputs()
    kept = targets >= 0
    loss = cross_entropy(queries, items, targets, 0.1, 5)
    torch.testing.assert_close(loss, cross_entropy(queries[kept], items, targets[kept], 0.1, 5))
    (gradient,) = torch.autograd.grad(loss, queries)
    assert not gradient[~kept].any()
    assert bool((gradient[kept] != 0).any(1).all())


@pytest.mark.parametrize("item_chunk", [None, 4])
def test_nothing_to_predict_is_zero(item_chunk: int | None) -> None:
    queries, items, targets = inputs()
    loss = cross_entropy(queries, items, torch.full_like(targets, -1), 0.1, item_chunk=item_chunk)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, queries)[0].any()


@pytest.mark.parametrize("item_chunk", [None, 4])
def test_large_scores_stay_finite(item_chunk: int | None) -> None:
    queries, items, targets = inputs(torch.float32)
    loss = cross_entropy(queries * 1e4, items, targets, item_chunk=item_chunk)
    assert all(bool(torch.isfinite(x).all()) for x in (loss, *gradients(loss, queries, items)))


@pytest.mark.parametrize("item_chunk", [None, 4])
def test_bf16_products_accumulate_wide(item_chunk: int | None) -> None:
    queries, items, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(queries, items, targets, 0.1, 8, item_chunk=item_chunk)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference(queries, items, targets, 0.1), atol=0.05, rtol=0)
    mine = gradients(loss, queries, items)
    expected = gradients(reference(queries, items, targets, 0.1), queries, items)
    assert mine[0].dtype == mine[1].dtype == torch.float32
    torch.testing.assert_close(mine, expected, atol=0.01, rtol=0.02)


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


@pytest.mark.parametrize("item_chunk", [None, 7])
def test_a_narrow_table_has_a_narrow_gradient(item_chunk: int | None) -> None:
    torch.manual_seed(0)
    queries, table, targets = torch.randn(40, 8), torch.randn(30, 8).bfloat16(), torch.randint(30, (40,))
    grads = []
    for items in (table.clone().requires_grad_(), table.float().requires_grad_()):
        cross_entropy(queries, items, targets, 0.1, 40, item_chunk=item_chunk).backward()
        assert items.grad is not None
        grads.append(items.grad)
    assert grads[0].dtype == torch.bfloat16
    torch.testing.assert_close(grads[0].float(), grads[1], rtol=2**-6, atol=1e-4)
