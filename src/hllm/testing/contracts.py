"""What every ranker, item source, user model and view promises; plain asserts, so that any test can call them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hllm.data.batches.queries import eval_queries, query_batches
from hllm.evaluate.ranking import RankOptions, candidate_tokens, top_k
from hllm.packing import Batch, Rows, Signals, make_rows, offsets_of

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.evaluate.ranking import Ranker
    from hllm.items.source.base import ItemSource
    from hllm.losses.views import Views
    from hllm.models.user_models import UserModel


def check_ranker(ranker: Ranker, dataset: Dataset, tolerance: float = 1e-5) -> None:
    """Assert the `Ranker` protocol of evaluate/ranking.py on the test users of `dataset`.

    Scores are finite float32 (users, items) for every item of the catalogue; a user's scores depend
    neither on who else is in the batch nor on which other items are scored; scoring twice gives the
    same bits; a module comes out of ranking in the mode it went in. `tolerance` is relative to the
    largest score (or 1).
    """
    queries = eval_queries(dataset, "test")
    tokens = torch.arange(1, dataset.n_catalogue + 1)
    if isinstance(ranker, nn.Module):
        ranker.eval()

    def scores(batch_users: int, wanted: torch.Tensor) -> torch.Tensor:
        rows = [ranker.score(ranker.query(b), wanted) for _, b in query_batches(queries, None, batch_users)]
        return torch.cat(rows)

    with torch.no_grad():
        whole = scores(len(queries), tokens)
        assert whole.dtype == torch.float32, whole.dtype
        assert whole.shape == (len(queries), dataset.n_catalogue), whole.shape
        assert bool(torch.isfinite(whole).all()), "scores that are not finite"
        assert torch.equal(whole, scores(len(queries), tokens)), "scoring twice gives different bits"
        allowed = tolerance * float(whole.abs().max().clamp(min=1.0))
        assert torch.allclose(whole, scores(1, tokens), atol=allowed, rtol=0), "a score depends on the batch"
        some = tokens.flip(0)[::3]
        part = scores(len(queries), some)
        same = torch.allclose(part, whole[:, some - 1], atol=allowed, rtol=0)
        assert same, "a score depends on the other items"
    _check_lists(ranker, dataset)


def _check_lists(ranker: Ranker, dataset: Dataset) -> None:
    """Lists are distinct candidates, unseen, ranked from 1 by falling score."""
    queries = eval_queries(dataset, "test")
    training = isinstance(ranker, nn.Module) and ranker.train().training
    top = top_k(ranker, queries, RankOptions(candidate_tokens(dataset)), k=dataset.n_catalogue + 5)
    if training:
        assert isinstance(ranker, nn.Module)
        assert ranker.training, "ranking changed the module's mode"
        ranker.eval()
    for row in range(len(queries)):
        mine = top.rows == row
        tokens, values = top.tokens[mine].tolist(), top.scores[mine]
        seen = set(queries.tokens[queries.starts[row] : queries.ends[row]].tolist())
        expected = set(range(1, dataset.n_candidates + 1)) - seen
        assert set(tokens) == expected, "not the unseen candidates"
        assert len(tokens) == len(expected), "an item twice"
        assert bool((values[:-1] >= values[1:]).all()), "not by falling score"
        assert top.ranks[mine].tolist() == list(range(1, len(tokens) + 1)), "ranks do not count from 1"


def check_source(source: ItemSource, tolerance: float = 1e-9) -> None:
    """Assert the contract of items/source/base.py; give the source in float64, in evaluation mode or not.

    Vectors are (n, width), finite, and each depends on its own item alone; the table is what `encode` gives; a lease
    gives the vectors of `encode` as a leaf, and spending a gradient there does what one plain graph does, under the
    same random state; `extend` adds items and changes no other; `tiles` leaves the random state of dropout alone in
    evaluation.
    """
    tokens = torch.arange(1, min(source.n_items, 23) + 1)
    _check_lease(source, tokens, tolerance)
    training = source.training
    source.eval()
    with torch.no_grad():
        vectors = source.encode(tokens)
        assert vectors.shape == (len(tokens), source.width), vectors.shape
        assert bool(torch.isfinite(vectors).all()), "vectors that are not finite"
        alone = torch.cat([source.encode(token) for token in tokens.flip(0).split(1)]).flip(0)
        torch.testing.assert_close(alone, vectors, rtol=tolerance, atol=tolerance)
        table = torch.cat(list(source.tiles()))
        assert table.shape == (source.n_items + 1, source.width), table.shape
        torch.testing.assert_close(table[tokens], vectors, rtol=tolerance, atol=tolerance)
    source.train(training)
    assert isinstance(source.spec()["kind"], str)


def _check_lease(source: ItemSource, tokens: torch.Tensor, tolerance: float) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        return {n: p.grad.clone() for n, p in source.named_parameters() if p.grad is not None}

    state = torch.get_rng_state()
    source.zero_grad()
    lease = source.lease(tokens)
    assert lease.vectors.is_leaf and lease.vectors.shape == (len(tokens), source.width)
    assert lease.vectors.dtype in (torch.float32, torch.float64), lease.vectors.dtype
    wanted = torch.randn(lease.vectors.shape, dtype=lease.vectors.dtype)
    if lease.vectors.requires_grad:
        lease.vectors.grad = wanted.clone()
        lease.backward()
    leased = gradients()
    torch.set_rng_state(state)
    source.zero_grad()
    plain = source.encode(tokens)
    if plain.requires_grad:
        plain.backward(wanted.to(plain.dtype))
    if source.static:  # one plain graph: the same random numbers in the same order
        torch.testing.assert_close(lease.vectors.detach(), plain.detach(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(leased, gradients(), rtol=tolerance, atol=tolerance)
    assert leased.keys() == gradients().keys(), "a lease trains other parameters"
    source.zero_grad()


def check_user_model(model: UserModel, width: int, tolerance: float = 1e-9) -> None:
    """Assert the `UserModel` protocol on random histories; give the model in float64, in evaluation mode.

    States are (T, width) and finite; a state depends on earlier events of its own history alone; neither the other
    histories of a batch nor how they fall into rows change it; gradients reach the inputs.
    """
    lengths = torch.tensor([5, 1, 9, 3, 2])
    total, generator = int(lengths.sum()), torch.Generator().manual_seed(0)
    x = torch.randn(total, width, dtype=torch.float64, generator=generator)
    times = torch.randint(0, 10**6, (total,), generator=generator).sort().values
    offsets = offsets_of(lengths)

    def batch_of(first: int, last: int) -> Batch:
        a, b = int(offsets[first]), int(offsets[last])
        tokens = torch.ones(b - a, dtype=torch.long)
        part = offsets[first : last + 1] - offsets[first]
        return Batch(torch.arange(last - first), tokens, times[a:b], tokens, part)

    def states(x: torch.Tensor, batch: Batch, rows: Rows | None = None) -> torch.Tensor:
        return model(x, rows or make_rows(batch), Signals(batch.times))

    whole = batch_of(0, len(lengths))
    base = states(x, whole)
    assert base.shape == (total, width), base.shape
    assert bool(torch.isfinite(base).all()), "states that are not finite"
    wide = states(x, whole, make_rows(whole, row=48))
    torch.testing.assert_close(wide, base, rtol=tolerance, atol=tolerance)
    for user in range(len(lengths)):
        a, b = int(offsets[user]), int(offsets[user + 1])
        alone = states(x[a:b], batch_of(user, user + 1))
        torch.testing.assert_close(alone, base[a:b], rtol=tolerance, atol=tolerance)
    changed = x.clone()
    at = int(offsets[3]) - 1  # the last event of the third history
    changed[at] += torch.linspace(-1, 2, width, dtype=x.dtype)  # no constant: layer norms take that off again
    after = states(changed, whole)
    moved = (after - base).abs().amax(1) > tolerance
    assert moved.nonzero().flatten().tolist() == [at], (
        "an event changes states before it, or of another history"
    )
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(states(leaf, whole).square().sum(), leaf)
    assert bool((grad.abs().amax(1) > 0).all()), "no gradient reaches an input"


def check_views(views: Views, batch: Batch, counts: torch.Tensor) -> None:
    """Assert the contract of `ItemView` (packing.py) for `batch`; counts int64 (n_items + 1,) training events."""
    view, again = views.view(batch, (3, 5)), views.view(batch, (3, 5))
    valid = torch.ones_like(view.tokens, dtype=torch.bool) if view.valid is None else view.valid
    tokens = view.tokens[valid]
    assert torch.equal(tokens, tokens.unique()), "tokens are not distinct and sorted"
    assert bool((counts[tokens] > 0).all()), "an item without a training event takes part"
    assert torch.equal(view.tokens[view.inputs], batch.tokens), "inputs point elsewhere"
    has = batch.targets > 0
    assert torch.equal(view.targets >= 0, has), "a target is lost"
    assert torch.equal(view.tokens[view.targets[has]], batch.targets[has]), "targets point elsewhere"
    assert int(view.targets.max()) < view.n_classes <= len(view.tokens)
    if view.negatives is not None:
        assert bool(valid[view.negatives].all()), "a negative is no item"
        assert again.negatives is not None and torch.equal(view.negatives, again.negatives)
        other = views.view(batch, (3, 6)).negatives
        assert other is not None
        drawn = view.tokens[view.negatives]
        assert not torch.equal(drawn, views.view(batch, (3, 6)).tokens[other]), (
            "the same negatives at every step"
        )
