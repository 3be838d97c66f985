"""The kernel that counts scores against plain torch; on a CPU by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from hllm.evaluate.counting import reaching

pytest.importorskip("triton")


@pytest.mark.parametrize("n_items", [3, 4096, 5000])
def test_equals_plain_torch(n_items: int) -> None:
    from hllm.kernels import count

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    whole = torch.randn(5, n_items + 7, device=device).mul(4).round()  # many are equal
    scores = whole[:, 3 : n_items + 3]  # a part of wider rows
    scores[0, 0] = -torch.inf
    floor = torch.tensor([-torch.inf, 1.0, 0.0, 100.0, -2.0], device=device)
    at_least, more = count.reaching(scores, floor)
    assert at_least.tolist() == reaching(scores, floor).tolist()
    assert more.tolist() == reaching(scores, floor, above=True).tolist()
    assert at_least[0] == n_items
    assert more[0] == n_items - 1
