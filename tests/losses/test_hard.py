"""Hard negatives: the nearest items of the batch's targets, as often as they are said to be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hllm.losses import hard
from hllm.losses.config import ObjectiveConfig
from hllm.losses.hard import draw_hard, hard_share_of, nearest_items
from hllm.losses.objective import make_objective
from hllm.losses.views import BatchItems, WholeCatalogue
from hllm.packing import Batch, offsets_of
from hllm.testing import check_views

COUNTS = np.array([0, 5, 1, 0, 3, 8, 2, 1, 0, 4, 1, 1, 2, 6, 1])  # token 0 is padding
N_CLASSES = 12


def objective(**settings: Any) -> ObjectiveConfig:
    given = {"loss": "sampled", "label_smoothing": 0.0, "n_negatives": 40, "negatives_by": "hard"}
    return ObjectiveConfig(**{**given, **settings})


def batch() -> Batch:
    tokens = torch.tensor([1, 4, 5, 5, 9, 13, 2])
    targets = torch.tensor([4, 5, 0, 9, 13, 12, 0])
    return Batch(torch.arange(2), tokens, torch.arange(7), targets, offsets_of(torch.tensor([3, 4])))


def vectors() -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(N_CLASSES, 6, generator=torch.Generator().manual_seed(0))
    )


VIEWS = {
    "whole": lambda **s: WholeCatalogue(COUNTS, objective(**s), 0),
    "batch": lambda **s: BatchItems(COUNTS, objective(**s), 0),
}


@pytest.mark.parametrize("scores", [1 << 24, 30])
def test_nearest_items(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hard, "SCORES", scores)
    x = vectors()
    found = nearest_items(x, 4)
    for i in range(N_CLASSES):
        others = sorted((j for j in range(N_CLASSES) if j != i), key=lambda j: -float(x[i] @ x[j]))
        assert found[i].tolist() == others[:4]
    assert nearest_items(x, 32).shape == (N_CLASSES, 11)


def test_draws_are_even_over_targets_and_their_neighbours() -> None:
    nearest = nearest_items(vectors(), 3)
    targets = torch.tensor([2, -1, 7, 7, -1])
    uniform = torch.from_numpy(np.random.default_rng(0).random((2, 60_000)))
    drawn = draw_hard(targets, nearest, uniform)
    expected = torch.zeros(N_CLASSES)
    for target, weight in ((2, 1 / 3), (7, 2 / 3)):
        expected[nearest[target].long()] += weight / 3
    torch.testing.assert_close(torch.bincount(drawn, minlength=12) / 60_000, expected, atol=0.01, rtol=0)
    nobody = draw_hard(torch.full((4,), -1), nearest, uniform[:, :5])
    assert bool(((nobody >= 0) & (nobody < N_CLASSES)).all())


@pytest.mark.parametrize("name", VIEWS)
def test_the_contract_before_and_after_the_first_refresh(name: str) -> None:
    views = VIEWS[name]()
    check_views(views, batch(), torch.from_numpy(COUNTS))
    views.refresh(vectors())
    check_views(views, batch(), torch.from_numpy(COUNTS))


@pytest.mark.parametrize("name", VIEWS)
def test_a_share_is_near_to_the_targets(name: str) -> None:
    views = VIEWS[name](hard_share=0.25)
    before = views.view(batch(), (1, 2))
    views.refresh(vectors())
    view = views.view(batch(), (1, 2))
    assert view.negatives is not None and before.negatives is not None and view.negatives.shape == (40,)
    drawn, was = view.tokens[view.negatives], before.tokens[before.negatives]
    assert torch.equal(drawn[:30], was[:30])  # by counts, as ever
    nearest = nearest_items(vectors())
    targets = np.searchsorted(views.classes, batch().targets[batch().targets > 0].numpy())
    near = set(views.classes[nearest[torch.from_numpy(targets)].numpy().ravel()].tolist())
    assert set(drawn[30:].tolist()) <= near


@pytest.mark.parametrize("name", VIEWS)
def test_log_probabilities_are_those_of_the_mixture(name: str) -> None:
    views = VIEWS[name](hard_share=0.25)
    views.refresh(vectors() * torch.linspace(1, 3, N_CLASSES).unsqueeze(1))
    share = COUNTS[views.classes] / COUNTS.sum()
    nearest = views.negatives.nearest
    assert nearest is not None
    expected = 0.75 * share
    for i in range(N_CLASSES):
        for j in nearest[i].tolist():
            expected[j] += 0.25 * share[i] / nearest.shape[1]
    assert expected.sum() == pytest.approx(1)
    view = views.view(batch(), (0, 0))
    assert view.log_q is not None
    rows = np.searchsorted(views.classes, view.tokens.numpy())
    np.testing.assert_allclose(view.log_q.exp(), expected[rows], rtol=1e-5)
    assert hard_share_of(share, nearest).sum() == pytest.approx(1)
    uncorrected = VIEWS[name](logq=False)
    uncorrected.refresh(vectors())
    assert uncorrected.view(batch(), (0, 0)).log_q is None


def test_the_users_own_items_are_no_negatives() -> None:
    """The loss is that of counts with the same negatives and `mask_history`."""
    torch.manual_seed(0)
    views = VIEWS["whole"]()
    views.refresh(vectors())
    view = views.view(batch(), (0, 0))
    queries, classes = torch.randn(7, 6), vectors()
    own = make_objective(objective())(queries, classes, batch(), view)
    masked = make_objective(objective(negatives_by="counts", mask_history=True))
    plain = make_objective(objective(negatives_by="counts"))
    assert torch.equal(own, masked(queries, classes, batch(), view))
    assert not torch.equal(own, plain(queries, classes, batch(), view))
