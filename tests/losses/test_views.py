"""Which items a step needs: everything is found, nothing else is encoded, and draws follow their probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hllm.losses.config import ObjectiveConfig
from hllm.losses.views import BatchItems, Negatives, WholeCatalogue, make_views
from hllm.packing import Batch, offsets_of
from hllm.testing import check_views

COUNTS = np.array([0, 5, 1, 0, 3, 8, 2, 1, 0, 4, 1, 1, 2, 6, 1])  # token 0 is padding


def batch() -> Batch:
    tokens = torch.tensor([1, 4, 5, 5, 9, 13, 2])
    targets = torch.tensor([4, 5, 0, 9, 13, 12, 0])
    return Batch(torch.arange(2), tokens, torch.arange(7), targets, offsets_of(torch.tensor([3, 4])))


def objective(**settings: Any) -> ObjectiveConfig:
    return ObjectiveConfig(**{"loss": "sampled", "label_smoothing": 0.0, "n_negatives": 5, **settings})


VIEWS = {
    "whole": lambda: WholeCatalogue(COUNTS, ObjectiveConfig(), 0),
    "whole, sampled": lambda: WholeCatalogue(COUNTS, objective(), 0),
    "batch, sampled": lambda: BatchItems(COUNTS, objective(), 0),
    "batch, fixed size": lambda: BatchItems(COUNTS, objective(), 0, size=19),
    "batch, in_batch": lambda: BatchItems(COUNTS, objective(loss="in_batch", n_negatives=None), 0),
}


@pytest.mark.parametrize("name", VIEWS)
def test_the_contract(name: str) -> None:
    check_views(VIEWS[name](), batch(), torch.from_numpy(COUNTS))


def test_the_whole_catalogue_holds_trained_items_only() -> None:
    view = WholeCatalogue(COUNTS, ObjectiveConfig(), 0).view(batch(), (0, 0))
    assert view.tokens.tolist() == np.flatnonzero(COUNTS).tolist()
    assert view.n_classes == 12 and view.negatives is None and view.log_q is None


def test_the_batchs_items_are_its_own_and_the_drawn_ones() -> None:
    views = BatchItems(COUNTS, objective(), 0)
    view = views.view(batch(), (1, 2))
    drawn = views.classes[views.negatives.draw((1, 2))]
    assert set(view.tokens.tolist()) == {1, 4, 5, 9, 13, 2, 12} | set(drawn.tolist())
    assert view.tokens[view.negatives].tolist() == drawn.tolist()


def test_a_fixed_size_leaves_entries_unused() -> None:
    view = BatchItems(COUNTS, objective(), 0, size=19).view(batch(), (0, 0))
    assert view.tokens.shape == (19,) and view.valid is not None and view.log_q is not None
    assert not view.tokens[~view.valid].any() and not view.log_q[~view.valid].any()
    with pytest.raises(ValueError, match="its view holds 3"):
        BatchItems(COUNTS, objective(), 0, size=3).view(batch(), (0, 0))


def test_log_probabilities_are_those_of_the_training_counts() -> None:
    share = COUNTS / COUNTS.sum()
    for views in (WholeCatalogue(COUNTS, objective(), 0), BatchItems(COUNTS, objective(), 0)):
        view = views.view(batch(), (0, 0))
        assert view.log_q is not None
        np.testing.assert_allclose(view.log_q.exp(), share[view.tokens], rtol=1e-6)
    even = BatchItems(COUNTS, objective(negatives_by="uniform"), 0).view(batch(), (0, 0))
    assert even.log_q is not None
    np.testing.assert_allclose(even.log_q.exp(), 1 / 12, rtol=1e-6)
    assert BatchItems(COUNTS, objective(logq=False), 0).view(batch(), (0, 0)).log_q is None


@pytest.mark.parametrize("by", ["counts", "uniform"])
def test_draws_follow_their_probabilities(by: str) -> None:
    counts = COUNTS[COUNTS > 0]
    negatives = Negatives(counts, objective(n_negatives=2000, negatives_by=by), seed=3)
    drawn = np.concatenate([negatives.draw((0, step)) for step in range(20)])
    expected = counts / counts.sum() if by == "counts" else np.full(12, 1 / 12)
    np.testing.assert_allclose(np.bincount(drawn, minlength=12) / len(drawn), expected, atol=0.01)
    assert (negatives.draw((0, 4)) == negatives.draw((0, 4))).all()
    assert (negatives.draw((0, 4)) != negatives.draw((1, 4))).any()


@pytest.mark.parametrize(
    ("settings", "batch_tokens", "kind"),
    [
        ({"loss": "cross_entropy"}, 8, WholeCatalogue),
        ({"loss": "sampled", "label_smoothing": 0.0, "n_negatives": 2}, 1, BatchItems),
        ({"loss": "sampled", "label_smoothing": 0.0, "n_negatives": 2}, 8, WholeCatalogue),
        ({"loss": "in_batch", "label_smoothing": 0.0}, 2, BatchItems),
        ({"loss": "sampled", "label_smoothing": 0.0}, 1, WholeCatalogue),  # 512 negatives of 12 items
    ],
)
def test_the_cheaper_view_that_carries_the_loss(
    settings: dict[str, Any], batch_tokens: int, kind: type
) -> None:
    assert type(make_views(COUNTS, ObjectiveConfig(**settings), batch_tokens, 0)) is kind
