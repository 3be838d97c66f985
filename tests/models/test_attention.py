"""Packed attention against softmax attention of one user at a time, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hllm.models import attention as module
from hllm.models import spans
from hllm.models.attention import attend, make_layout
from hllm.packing import Batch, Rows, make_rows, offsets_of

HEADS, WIDTH = 3, 4


def packed(lengths: list[int]) -> Batch:
    total = sum(lengths)
    zeros = torch.zeros(total, dtype=torch.long)
    return Batch(torch.arange(len(lengths)), zeros + 1, zeros, zeros, offsets_of(torch.tensor(lengths)))


def naive(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], bias: Tensor | None) -> Tensor:
    """Softmax attention, one user and one position at a time."""
    out, first = [], 0
    for length in lengths:
        for i in range(length):
            keys = slice(first, first + i + 1)
            scores = torch.einsum("hd,jhd->hj", q[first + i], k[keys]) / WIDTH**0.5
            if bias is not None:
                scores = scores + bias[:, i, : i + 1]
            out.append(torch.einsum("hj,jhd->hd", scores.softmax(-1), v[keys]))
        first += length
    return torch.stack(out)


@pytest.mark.parametrize("lengths", [[5, 3], [1], [17, 1, 1, 16, 2], [33, 4, 4]])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("row", [None, 40])
@pytest.mark.parametrize("blocks", [False, True, None])
def test_equals_softmax_attention_per_user(
    lengths: list[int], with_bias: bool, row: int | None, blocks: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rows, by blocks of queries, and one history at a time."""
    torch.manual_seed(0)
    monkeypatch.setattr(spans, "LONG", 1 if blocks is None else 10**9)
    monkeypatch.setattr(spans, "BLOCK", 8)  # queries of longer histories go in several
    batch = packed(lengths)
    rows = make_rows(batch, row)
    if blocks:  # a few queries at a time, computed again in backward
        entries = rows.segments.shape[0] * HEADS * rows.segments.shape[1]
        monkeypatch.setattr(module, "MASK_ENTRIES", 8 * entries * 5)
    layout = make_layout(rows, HEADS)
    assert (layout.spans is not None) == (blocks is None)
    if blocks and rows.segments.shape[1] > 40:
        assert layout.mask is None
    q, k, v = (
        torch.randn(batch.n_tokens, HEADS, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    size = rows.segments.shape[1]
    # A bias by distance: slot numbers inside a row and positions inside a history then agree.
    by_distance = torch.randn(HEADS, size, dtype=torch.float64, requires_grad=True)
    distance = (torch.arange(size)[:, None] - torch.arange(size)).clamp(min=0)
    bias = by_distance[:, distance] if with_bias else None
    inputs = [q, k, v] + [by_distance] * with_bias

    ours = attend(torch.stack((q, k, v), 1), layout, by_distance if with_bias else None)
    theirs = naive(q, k, v, lengths, bias)
    assert ours.shape == (batch.n_tokens, HEADS, WIDTH)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    upstream = torch.randn_like(ours)
    for mine, reference in zip(
        torch.autograd.grad(ours, inputs, upstream, retain_graph=True),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference, atol=1e-11, rtol=0)


def test_mask_keeps_to_the_past_of_ones_own_sequence() -> None:
    rows = make_rows(packed([3, 2]), row=6)
    mask = make_layout(rows, HEADS).mask
    assert mask is not None and mask.shape == (1, 1, 6, 6)
    allowed = mask[0, 0].int().tolist()
    assert allowed[:5] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
    ]
    assert allowed[5] == [0, 0, 0, 0, 0, 1]  # an empty slot sees itself, never a token


def test_empty_slots_give_no_nan() -> None:
    batch = packed([2])
    rows = make_rows(batch, row=16, n_rows=3)
    x = torch.randn(2, HEADS, WIDTH, requires_grad=True)
    bias = torch.zeros(HEADS, 16, requires_grad=True)
    attend(torch.stack((x, x, x), 1), make_layout(rows, HEADS), bias).sum().backward()
    assert x.grad is not None and bias.grad is not None
    assert bool(torch.isfinite(x.grad).all())
    assert bool(torch.isfinite(bias.grad).all())


def test_dropout_is_applied_to_the_weights() -> None:
    torch.manual_seed(0)
    batch = packed([40])
    rows = make_rows(batch)
    x = torch.randn(40, HEADS, WIDTH)
    layout = make_layout(rows, HEADS)
    assert not torch.equal(
        attend(torch.stack((x, x, x), 1), layout, dropout=0.5), attend(torch.stack((x, x, x), 1), layout)
    )


def test_order_says_who_sees_whom() -> None:
    """Baskets see each other where they are mutual, candidates see the history but not each other."""
    segments = torch.tensor([[0, 0, 0, 0, -1]])
    order = torch.tensor([[0, 1, 1, 2, 0]])

    def seen(mutual: bool) -> list[list[int]]:
        rows = Rows(torch.arange(4), segments, order, mutual)
        mask = make_layout(rows, 1).mask
        assert mask is not None
        return mask[0, 0, :4].int().tolist()

    assert seen(False) == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert seen(True) == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]


def test_long_rows_take_memory_that_grows_with_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of queries: no tensor has length times length entries."""
    monkeypatch.setattr(module, "MASK_ENTRIES", 1 << 14)
    monkeypatch.setattr(spans, "LONG", 10**9)
    rows = make_rows(packed([700]))
    layout = make_layout(rows, HEADS)
    assert layout.mask is None
    sizes: list[int] = []
    original = module.visible
    monkeypatch.setattr(
        module, "visible", lambda *args: (sizes.append((mask := original(*args)).numel()), mask)[1]
    )
    x = torch.randn(700, HEADS, WIDTH)
    attend(torch.stack((x, x, x), 1), layout, torch.zeros(HEADS, rows.segments.shape[1]))
    assert max(sizes) <= 1 << 12
