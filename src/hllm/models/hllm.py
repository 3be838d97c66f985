"""HLLM with a frozen item LLM: item vectors in, next-item queries out. Read from top to bottom.

    tokens (T,) -> item vectors (T, d) -> gated blocks -> hidden (T, d) -> cosine scores

Histories are packed end to end (T tokens of U users, see packing.py). Every position predicts
its next item. Item vectors come from an item source (items/source/frozen.py): text through an adapter,
plus an ID embedding; the same vectors are the model's inputs and its output classes.
Paper: HLLM (Chen et al., 2024, arXiv:2409.12740).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.config import Config
from hllm.errors import DataError
from hllm.items.source.frozen import FrozenItemSource
from hllm.models.attention import attention_mask
from hllm.models.block import GatedBlock, RMSNorm
from hllm.models.rechub import RechubUserModel
from hllm.models.scorers import make_scorer
from hllm.packing import Batch, last_positions, make_rows
from hllm.settings import heads_of


class UserModel(nn.Module):
    """Item vectors (T, d) of packed histories to hidden states (T, d), one per position."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d = config.users.d_model
        assert d is not None  # without an adapter vectors are not of this model's making
        n_heads = heads_of(d, config.users.n_heads)
        ffn_hidden = config.users.ffn_hidden or -(-8 * d // 3 // 32) * 32
        self.mask_prob = config.users.mask_prob
        # Of the size of a normalised input. From zero, RMSNorm would blow its gradient up until
        # clipping leaves nothing of all the others'.
        self.mask_vector = nn.Parameter(torch.randn(d))
        self.input_norm = RMSNorm(d)
        self.dropout = nn.Dropout(config.users.dropout)
        self.blocks = nn.ModuleList(
            GatedBlock(d, n_heads, ffn_hidden, config.users.max_distance, config.users.dropout)
            for _ in range(config.users.n_layers)
        )
        self.norm = RMSNorm(d)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        x = self.input_norm(x)  # (T, d), so that the vectors, not the blocks, lead at the start
        if self.training and self.mask_prob:
            # Hide some inputs (never the targets), so that no single neighbour is relied on.
            hidden = torch.rand(x.shape[0], 1, device=x.device) < self.mask_prob
            x = torch.where(hidden, self.mask_vector.to(x.dtype), x)
        rows = batch.rows or make_rows(batch)
        mask = attention_mask(rows)  # (B, R, R): who may look at whom, the same for every layer
        x = self.dropout(x)  # (T, d)
        for block in self.blocks:
            x = block(x, rows, mask)  # (T, d)
        return self.norm(x)

    def reset_parameters(self) -> None:
        """What a block adds starts small: a deep model begins close to its input (GPT-2)."""
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "ffn.down.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * len(self.blocks)) ** 0.5)


class HLLM(nn.Module):
    """Item source, user model and scorer: the whole network, a `Ranker` once trained."""

    def __init__(self, config: Config, source: FrozenItemSource) -> None:
        super().__init__()
        self.source = source
        self.user_model: UserModel | RechubUserModel = (
            RechubUserModel(config, source.d_model)
            if config.users.user_model == "rechub"
            else UserModel(config)
        )
        self.scorer = make_scorer(config)
        self._table: Tensor | None = None  # scored item vectors (n + 1, d), cached while ranking
        self.apply(_init_weights)
        self.user_model.reset_parameters()

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Training view of a batch whose items all occur in training.

        Returns queries (T, d), the vectors (M, d) of the M training items, and each target's row
        (T,) among them, -1 where there is nothing to predict. Every item is encoded once.
        """
        vectors = self.source.encode(self.source.trained_tokens)  # (M, d)
        rows = self.source.trained_rows[batch.tokens]  # (T,)
        hidden = self.user_model(F.embedding(rows, vectors), batch)  # (T, d)
        targets = torch.where(batch.targets > 0, self.source.trained_rows[batch.targets], -1)
        return self.scorer.query(hidden), self.scorer.item(vectors), targets

    # -- the Ranker protocol of evaluate/ranking.py -------------------------------------------

    @torch.no_grad()
    def query(self, batch: Batch) -> Tensor:
        """Queries float32 (U, d): the scaled hidden state at each user's last event."""
        if batch.n_users and int(batch.lengths.min()) == 0:
            raise DataError(
                "a user without any event cannot be ranked for; give at least one item of history"
            )
        hidden = self.user_model(self.source.encode(batch.tokens), batch)
        return self.scorer.query(hidden[last_positions(batch.offsets)])

    @torch.no_grad()
    def score(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores float32 (U, m) of the items `tokens` (m,)."""
        if self._table is None:
            self._table = torch.cat([self.scorer.item(v) for _, v in self.source.tiles()])
        return query @ self._table[tokens].T

    def train(self, mode: bool = True) -> HLLM:
        """Switch between training and ranking; the cached item table never outlives a change of mode."""
        self._table = None
        return super().train(mode)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
