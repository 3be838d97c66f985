"""What every ranker promises, trained model or baseline; plain asserts, so that any test can call it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hllm.data.batches.queries import eval_queries, query_batches
from hllm.evaluate.ranking import RankOptions, candidate_tokens, top_k

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.evaluate.ranking import Ranker


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
