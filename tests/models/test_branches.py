"""The block's hand-written backward against its modules, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hllm.models import branches
from hllm.models.attention import make_layout
from hllm.models.block import GatedBlock, RMSNorm
from hllm.packing import Batch, make_rows, offsets_of

D, HEADS = 8, 2


def both_ways(
    lengths: list[int], dropout: float, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """What a block gives, and the gradients of its input and weights: by its modules, then by hand."""
    torch.manual_seed(0)
    block = GatedBlock(D, HEADS, 12, 16, dropout).double()
    for p in block.parameters():
        torch.nn.init.normal_(p)
    zeros = torch.zeros(sum(lengths), dtype=torch.long)
    batch = Batch(torch.arange(len(lengths)), zeros, zeros, zeros, offsets_of(torch.tensor(lengths)))
    layout = make_layout(make_rows(batch), HEADS)
    x = torch.randn(batch.n_tokens, D, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    used: list[bool] = []
    by_hand = branches.by_hand
    found = []
    for wanted in (False, True):

        def choose(x: Tensor, wanted: bool = wanted) -> bool:
            used.append(wanted and by_hand(x))
            return used[-1]

        monkeypatch.setattr(branches, "by_hand", choose)
        torch.manual_seed(1)
        used.clear()
        out = block(x, layout)
        assert any(used) is wanted
        named = {"x": x, **dict(block.named_parameters())}
        grads = torch.autograd.grad(out, list(named.values()), upstream)
        found.append((out.detach(), dict(zip(named, grads, strict=True))))
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("chunk", [3, 7, 1024])
def test_by_hand_is_what_the_modules_give(
    dropout: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branches, "CHUNK", chunk)
    (plain, wanted), (ours, found) = both_ways([5, 1, 8], dropout, monkeypatch)
    torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)
    for name, gradient in wanted.items():
        assert gradient.any(), name
        torch.testing.assert_close(found[name], gradient, atol=1e-11, rtol=1e-11, msg=name)


def test_only_where_a_graph_is_made_in_full_precision() -> None:
    x = torch.randn(3, D, requires_grad=True)
    assert branches.by_hand(x) and branches.by_hand(x.double())
    assert not branches.by_hand(x.detach()) and not branches.by_hand(x.bfloat16())
    with torch.no_grad():
        assert not branches.by_hand(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not branches.by_hand(x)


def test_the_norm_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "CHUNK", 3)
    torch.manual_seed(0)
    norm = RMSNorm(D).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(8, D, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    found = []
    for form in (norm, lambda x: F.rms_norm(x, (D,), norm.weight)):
        out = form(x)
        found.append((out.detach(), *torch.autograd.grad(out, [x, norm.weight], upstream)))
    assert type(norm(x).grad_fn).__name__ == "_NormaliseBackward"
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-12)
