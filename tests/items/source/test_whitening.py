"""Whitening: fitted in float64, on given rows alone, applied unchanged to others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hllm.errors import DataError
from hllm.items.source.whitening import Whitening


def vectors(n: int = 200, d: int = 12) -> torch.Tensor:
    """Nearly parallel rows, as an LLM gives: a large common part and directions of unequal size."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator) * torch.logspace(0, -2, d) + 30.0


def every(n: int) -> torch.Tensor:
    return torch.ones(n, dtype=torch.bool)


def test_whitened_rows_have_no_mean_and_unit_covariance() -> None:
    x = vectors()
    y = Whitening.fit(x, "whiten", 12).transform(x, every(200))
    assert y.dtype == torch.float32 and y.shape == (200, 12)
    torch.testing.assert_close(y.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(y.double().T), torch.eye(12).double(), atol=0.02, rtol=0)


def test_equals_numpy_in_float64() -> None:
    x = vectors()
    wide = x.double().numpy()
    centred = wide - wide.mean(0)
    values, directions = np.linalg.eigh(centred.T @ centred / 199)
    expected = centred @ directions[:, ::-1][:, :5] / np.sqrt(values[::-1][:5] + 1e-6 * values[-1])
    whitening = Whitening.fit(x, "whiten", 5)
    assert whitening.mean.dtype == whitening.basis.dtype == torch.float64
    found = (x.double() - whitening.mean) @ whitening.basis
    np.testing.assert_allclose(np.abs(found.numpy()), np.abs(expected), atol=1e-9)  # signs are a choice


def test_two_fits_agree_whatever_the_order_of_rows() -> None:
    x = vectors()
    one, other = Whitening.fit(x, "whiten", 6), Whitening.fit(x.flip(0), "whiten", 6)
    torch.testing.assert_close(one.basis, other.basis, atol=1e-7, rtol=1e-7)


def test_rank_is_cut_to_what_the_rows_span() -> None:
    x = vectors(5)
    assert Whitening.fit(x, "whiten", 256).basis.shape == (12, 4)
    assert Whitening.fit(x, "whiten", 2).basis.shape == (12, 2)


def test_centre_and_none() -> None:
    x = vectors()
    centred = Whitening.fit(x, "center", 3).transform(x, every(200)).double()
    torch.testing.assert_close(centred.mean(0), torch.zeros(12).double(), atol=1e-4, rtol=0)
    assert float(centred.square().mean()) == pytest.approx(1.0, rel=1e-4)
    direction = x.double() - x.double().mean(0)
    torch.testing.assert_close(centred / centred.norm(), direction / direction.norm(), atol=1e-5, rtol=0)
    assert torch.equal(Whitening.fit(x, "none", 3).transform(x, every(200)), x)


def test_rows_without_text_stay_zero() -> None:
    x = vectors(6)
    has_text = torch.tensor([True, False, True, True, True, False])
    y = Whitening.fit(x[has_text], "whiten", 3).transform(x, has_text)
    assert not y[~has_text].any()
    assert bool(y[has_text].any(1).all())


def test_rows_that_differ_by_rounding_alone_are_not_blown_up() -> None:
    same = torch.full((512, 12), 1 / 3)
    whitening = Whitening.fit(same, "whiten", 8)
    other = torch.cat((same[:1], vectors(3)))
    y = whitening.transform(other, every(4))
    assert bool(torch.isfinite(y).all())
    assert float(y[0].abs().max()) < 1e-6
    one = Whitening.fit(vectors(1), "whiten", 8).transform(vectors(3), every(3))
    assert bool(torch.isfinite(one).all())


@pytest.mark.parametrize("mode", ["whiten", "center"])
def test_nothing_to_fit_on_is_an_error(mode: str) -> None:
    with pytest.raises(DataError, match="whiten=none"):
        Whitening.fit(torch.zeros(0, 12), mode, 3)
