"""Scorers: one matrix product of two sides prepared apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hllm.config import load_config
from hllm.models.scorers import CosineScorer, make_scorer


def test_cosine_over_temperature() -> None:
    torch.manual_seed(0)
    scorer = CosineScorer(0.05)
    hidden, items = torch.randn(4, 6), torch.randn(9, 6) * 3
    expected = F.cosine_similarity(hidden[:, None], items[None], dim=-1) / 0.05
    torch.testing.assert_close(scorer.query(hidden) @ scorer.item(items).T, expected)


def test_the_temperature_is_learned_and_bounded() -> None:
    scorer = CosineScorer(0.07)
    hidden = torch.randn(3, 5)
    scorer.query(hidden).sum().backward()
    assert scorer.log_scale.grad is not None and float(scorer.log_scale.grad) != 0
    with torch.no_grad():
        scorer.log_scale.fill_(20.0)
    torch.testing.assert_close(scorer.query(hidden).norm(dim=-1), torch.full((3,), 100.0))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_scores_are_never_narrower_than_float32(given: torch.dtype, kept: torch.dtype) -> None:
    scorer = CosineScorer(0.07).to(torch.float64 if given == torch.float64 else torch.float32)
    assert scorer.query(torch.randn(2, 4).to(given)).dtype == kept
    assert scorer.item(torch.randn(2, 4).to(given)).dtype == kept


def test_a_zero_vector_gives_no_nan() -> None:
    scorer = CosineScorer(0.07)
    zero = torch.zeros(1, 4, requires_grad=True)
    (scorer.query(zero) @ scorer.item(torch.randn(3, 4)).T).sum().backward()
    assert zero.grad is not None and bool(torch.isfinite(zero.grad).all())


def test_scorer_of_a_configuration() -> None:
    scorer = make_scorer(load_config("sasrec", overrides={"temperature": 0.2}).scorer)
    assert isinstance(scorer, CosineScorer)
    torch.testing.assert_close(scorer.query(torch.tensor([[3.0, 4.0]])), torch.tensor([[3.0, 4.0]]))
