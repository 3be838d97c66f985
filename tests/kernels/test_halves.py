"""Products by halves against float64 and float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hllm.kernels.halves import LEAST, HalvedRows, pays


def test_halves_hold_the_rows() -> None:
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(50, 24), dim=1)
    rows[3] *= 1e-6
    made = HalvedRows(rows).halves.double()
    assert made.shape == (50, 48)
    kept = made[:, :24] + made[:, 24:] / 2**11
    assert (kept - rows).abs().max() < 2**-22
    assert (kept - rows).abs().max() < 1e-3 * (made[:, :24] - rows).abs().max()


def test_pays_for_large_tables_on_a_gpu_alone() -> None:
    assert not pays(torch.empty(LEAST, 1, device="meta"))
    assert not pays(torch.empty(LEAST, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 products into float32 are CUDA's")
def test_scores_are_about_as_exact_as_float32s() -> None:
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(20_000, 1024, device="cuda"), dim=1)
    query = F.normalize(torch.randn(300, 1024, device="cuda"), dim=1) / 0.07
    exact = query.double() @ rows.double().T
    made = HalvedRows(rows)
    assert pays(rows)
    by_slice = made.scores(query, slice(7, 19_000))
    error = (by_slice - exact[:, 7:19_000]).square().mean().sqrt()
    float32 = (query @ rows.T - exact).square().mean().sqrt()
    assert error < 6 * float32
    some = torch.tensor([9, 3, 19_999], device="cuda")
    torch.testing.assert_close(made.scores(query, some).double(), exact[:, some], atol=1e-5, rtol=0)


def test_a_query_is_split_once_for_all_its_tiles() -> None:
    torch.manual_seed(0)
    made, query = HalvedRows(F.normalize(torch.randn(50, 24), dim=1)), torch.randn(3, 24)
    first = made._halved(query)
    assert made._halved(query) is first
    kept = first[:, 24:].double() + first[:, :24].double() / 2**11
    assert (kept - query).abs().max() < 2**-20
    other = made._halved(query.clone())
    assert other is not first and torch.equal(other, first)
    assert not torch.equal(made._halved(query * 2), first)
    assert torch.equal(made._halved(query), first)
