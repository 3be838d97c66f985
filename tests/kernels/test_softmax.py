"""The kernel of the loss against plain torch; on a CPU by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from hllm.losses.cross_entropy import softmax_gradient

pytest.importorskip("triton")


@pytest.mark.parametrize("n_items", [5, 130])
def test_equals_plain_torch(n_items: int) -> None:
    from hllm.kernels import softmax

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    logits = 5 * torch.randn(7, n_items, device=device)
    targets = torch.tensor([0, 3, -1, 4, 1, -1, 2], device=device)
    loss, grad = softmax.softmax_gradient(logits, targets, 0.1, torch.float32)
    expected, expected_grad = softmax_gradient(logits.clone(), targets, 0.1, torch.float32)
    given = targets >= 0
    torch.testing.assert_close(loss[given], expected[given])
    torch.testing.assert_close(grad, expected_grad)
    assert not loss[~given].any()
    narrow = softmax.softmax_gradient(logits, targets, 0.1, torch.bfloat16)[1]
    torch.testing.assert_close(narrow.float(), expected_grad, atol=2e-3, rtol=1e-2)
