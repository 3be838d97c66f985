"""HLLM: item vectors in, next-item queries and classes out. Read from top to bottom.

    vectors (M, w) -> each event's vector (T, w) -> user model -> hidden (T, w) -> scorer -> queries (T, w)
    vectors (M, w) ---------------------------------------------> scorer -> classes (C, w)

Histories are packed end to end (T tokens of U users, see packing.py), and every position predicts its next item.
Which items take part is an `ItemView`; who makes their vectors, and who gets their gradient, is an item source's
affair (items/source): the same vectors are the model's inputs and its output classes.
Paper: HLLM (Chen et al., 2024, arXiv:2409.12740).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from hllm import kernels
from hllm.errors import DataError
from hllm.items.source.base import TILE, ItemSource, laid_out
from hllm.kernels.halves import HalvedRows, halved
from hllm.models.scorers import CosineScorer, DotScorer
from hllm.models.user_models import UserModel, attends_by_bounds
from hllm.packing import Batch, ItemView, Rows, last_positions, make_rows, one_row, split

FINITE = 1e38  # products of norms below this are products of vectors that float32 holds
CPU_TOKENS = 4096  # of histories that a CPU reads at once: what a layer makes of them its caches hold
_steps = [0]  # of all optimisers of this process


def _count_step(*_: object) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count_step)


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
        return self.user_model(x, batch.rows or self._rows(batch, x), batch.signals)

    def last_hidden(self, batch: Batch, x: Tensor) -> Tensor:
        """Hidden states (U, w) of each sequence's last event."""
        last: Any = getattr(self.user_model, "last", None)
        if (
            last is None
            or batch.rows is not None
            or x.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
        ):
            return self.hidden(batch, x)[last_positions(batch.offsets)]
        states: Tensor = last(x, self._rows(batch, x), batch.signals, batch.offsets)
        return states

    def _rows(self, batch: Batch, x: Tensor) -> Rows:
        """How attention lays the batch out: not at all where it ranks in bf16 on a GPU with kernels of ours."""
        ranks = not torch.is_grad_enabled() and torch.is_autocast_enabled(x.device.type)
        if (
            ranks
            and batch.n_tokens
            and kernels.usable(x.device)
            and attends_by_bounds(self.user_model, x.shape[1])
        ):
            return one_row(batch, batch.n_tokens, int(batch.lengths.max()))
        return make_rows(batch)


@dataclass(frozen=True)
class ItemTable:
    """Every item once, token by token from 0 (padding) on.

    raw      (n + 1, w)           vectors as the user model reads them
    scored   float32 (n + 1, w')  as the scorer compares them; `raw` itself where that is the same
    longest  largest norm of a scored row; NaN or infinite where a row is
    halved   `scored` for faster products, where that pays
    """

    raw: Tensor
    scored: Tensor
    longest: float
    halved: HalvedRows | None = None

    def scores(self, query: Tensor, which: slice | Tensor) -> Tensor:
        """Scores float32 (U, m) of `query` (U, w') and the rows of `which`; those of a slice are not copied."""
        if self.halved is not None:
            return self.halved.scores(query, which)
        return query @ self.scored[which].T


class Network(nn.Module):
    """Item source and HLLM: what a run trains, saves and ranks by (the `Ranker` of evaluate/tiles.py)."""

    def __init__(self, source: ItemSource, model: HLLM) -> None:
        super().__init__()
        self.source = source
        self.model = model
        self._table: ItemTable | None = None
        self._weights: list[tuple[Tensor, int, int]] = []  # which the table was made of
        self._holders: list[dict[str, Any]] = []  # where modules hold them: found once, asked at every call
        self._step = 0

    @torch.no_grad()
    def table(self) -> ItemTable:
        """The vectors of every item under today's weights: made once for each version of the weights.

        A version ends with a change in place (`load_state_dict`), with a tensor in another's place (`extend`, `to`),
        with a step of any optimiser (fused ones change weights behind the counters of changes in place), and with
        `train()`: a captured step leaves no trace that could be looked for.
        """
        if self._table is None or self._step != _steps[0] or not _same(self._weights, self._state_now()):
            self._table = None  # two tables need not fit into memory
            parts = [m for root in (self.source, self.model.scorer) for m in root.modules()]
            self._holders = [held for m in parts for held in (m._parameters, m._buffers)]
            # Whoever asks first: what is kept may be read with gradients later.
            with torch.inference_mode(False):
                self._table = self._make_table()
            self._weights, self._step = list(self._state_now()), _steps[0]
        return self._table

    def _state_now(self) -> Iterator[tuple[Tensor, int, int]]:
        for held in self._holders:
            for t in held.values():
                if t is not None:
                    yield t, 0 if t.is_inference() else t._version, t.data_ptr()

    def _make_table(self) -> ItemTable:
        raw = self.source.every()
        dot = isinstance(self.model.scorer, DotScorer) and raw.dtype in (torch.float32, torch.float64)
        parts = (self.model.scorer.item(rows) for rows in raw.split(TILE))
        scored = raw if dot else laid_out(parts, len(raw))
        longest = max((float(rows.norm(dim=1).max()) for rows in scored.split(TILE)), default=0.0)
        # Unit rows alone: of others the halves might not hold the largest.
        unit = isinstance(self.model.scorer, CosineScorer) and longest < 1.1
        return ItemTable(raw, scored, longest, halved(scored) if unit else None)

    @torch.no_grad()
    def query(self, batch: Batch) -> Tensor:
        """Queries float32 (U, w): the scaled hidden state at each user's last event."""
        if batch.n_users and int(batch.lengths.min()) == 0:
            raise DataError(
                "a user without any event cannot be ranked for; give at least one item of history"
            )
        raw = self.table().raw
        if batch.users.device.type != "cpu" or batch.rows is not None or batch.n_tokens <= CPU_TOKENS:
            return self._query(batch, raw)
        return torch.cat([self._query(part, raw) for part in split(batch, CPU_TOKENS)])

    def _query(self, batch: Batch, raw: Tensor) -> Tensor:
        return self.model.scorer.query(self.model.last_hidden(batch, raw[batch.tokens]))

    @torch.no_grad()
    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m) of the items `tokens` (m,)."""
        return self.table().scores(query, tokens)

    @torch.no_grad()
    def score_range(self, query: Tensor, first: int, stop: int) -> Tensor:
        """Scores float32 (U, stop - first) of the tokens from `first` to `stop` - 1, whose rows are not copied."""
        return self.table().scores(query, slice(first, stop))

    @torch.no_grad()
    def all_finite(self, query: Tensor) -> bool:
        """Whether every score of `query` (U, w) is finite: by the Cauchy-Schwarz inequality, without scores."""
        if not len(query):
            return True
        return float(query.norm(dim=1).max()) * self.table().longest < FINITE

    def train(self, mode: bool = True) -> Network:
        """Switch between training and ranking; the item table never outlives a return to training."""
        if mode:
            self._table = None
        return super().train(mode)


def _same(these: list[tuple[Tensor, int, int]], those: Iterable[tuple[Tensor, int, int]]) -> bool:
    """Whether both name the same tensors with the same contents."""
    return all(
        a is not None and b is not None and a[0] is b[0] and a[1:] == b[1:]
        for a, b in zip_longest(these, those)
    )
