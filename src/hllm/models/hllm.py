"""HLLM: item vectors in, next-item queries and classes out. Read from top to bottom.

    vectors (M, w) -> each event's vector (T, w) -> user model -> hidden (T, w) -> scorer -> queries (T, w)
    vectors (M, w) ---------------------------------------------> scorer -> classes (C, w)

Histories are packed end to end (T tokens of U users, see packing.py), and every position predicts its next item.
Which items take part is an `ItemView`; who makes their vectors, and who gets their gradient, is an item source's
affair (items/source): the same vectors are the model's inputs and its output classes.
Paper: HLLM (Chen et al., 2024, arXiv:2409.12740).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.errors import DataError
from hllm.items.source.base import TILE, ItemSource, laid_out
from hllm.models.scorers import CosineScorer, DotScorer
from hllm.models.user_models import UserModel
from hllm.packing import Batch, ItemView, last_positions, make_rows


@dataclass(frozen=True)
class Outputs:
    """queries (T, w) and classes (C, w), prepared so that scores are `queries @ classes.T`."""

    queries: Tensor
    classes: Tensor


class HLLM(nn.Module):
    """User model and scorer. It holds no item source."""

    def __init__(self, user_model: UserModel, scorer: CosineScorer | DotScorer) -> None:
        super().__init__()
        self.user_model = user_model
        self.scorer = scorer

    def forward(self, batch: Batch, view: ItemView, vectors: Tensor) -> Outputs:
        """`vectors` (M, w) of the view's items, each encoded once, to what the losses take."""
        hidden = self.hidden(batch, F.embedding(view.inputs, vectors))  # (T, w)
        return Outputs(self.scorer.query(hidden), self.scorer.item(vectors[: view.n_classes]))

    def hidden(self, batch: Batch, x: Tensor) -> Tensor:
        """Hidden states (T, w) of a batch whose events have the vectors `x` (T, w)."""
        return self.user_model(x, batch.rows or make_rows(batch), batch.signals)


@dataclass(frozen=True)
class ItemTable:
    """Every item once, token by token from 0 (padding) on.

    raw     (n + 1, w)           vectors as the user model reads them
    scored  float32 (n + 1, w')  as the scorer compares them
    """

    raw: Tensor
    scored: Tensor


class Network(nn.Module):
    """Item source and HLLM: what a run trains, saves and ranks by (the `Ranker` of evaluate/ranking.py)."""

    def __init__(self, source: ItemSource, model: HLLM) -> None:
        super().__init__()
        self.source = source
        self.model = model
        self._table: ItemTable | None = None

    @torch.no_grad()
    def table(self) -> ItemTable:
        """The vectors of every item under today's weights; made once until the mode changes (`train`)."""
        if self._table is None:
            raw, scorer = self.source.every(), self.model.scorer
            if isinstance(scorer, DotScorer) and raw.dtype in (torch.float32, torch.float64):
                self._table = ItemTable(raw, raw)
            else:
                self._table = ItemTable(raw, laid_out(map(scorer.item, raw.split(TILE)), len(raw)))
        return self._table

    @torch.no_grad()
    def query(self, batch: Batch) -> Tensor:
        """Queries float32 (U, w): the scaled hidden state at each user's last event."""
        if batch.n_users and int(batch.lengths.min()) == 0:
            raise DataError(
                "a user without any event cannot be ranked for; give at least one item of history"
            )
        hidden = self.model.hidden(batch, self.table().raw[batch.tokens])
        return self.model.scorer.query(hidden[last_positions(batch.offsets)])

    @torch.no_grad()
    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m) of the items `tokens` (m,)."""
        return query @ self.table().scored[tokens].T

    def train(self, mode: bool = True) -> Network:
        """Switch between training and ranking; the item table never outlives a change of mode."""
        self._table = None
        return super().train(mode)
