"""torch-rechub's lightweight HLLM: frozen item vectors, a Transformer over windows padded on the left.

Padding is not masked: a padded slot has the zero vector of row 0 plus its position and time
embeddings, and real events attend to it. The packed models of `hllm.models` differ there.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.compat.rechub.bias import RelPosBias
from hllm.compat.rechub.states import (
    BUCKET_FNS,
    STATES,
    InputError,
    State,
    check,
    check_heads,
    check_length,
    reset_parameters,
    time_buckets,
)
from hllm.formats.pickles import load_tensor
from hllm.models.rechub import feed_forward as feed_forward

TEMPERATURE = {"rechub": 0.07, "rechub-doc": 1.0}


class HLLMTransformerBlock(nn.Module):
    """Pre-norm block: causal attention, then a ReLU feed-forward of four times the width."""

    def __init__(self, d_model: int = 512, n_heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        check_heads(d_model, n_heads)
        self.d_model, self.n_heads, self.head_dim = d_model, n_heads, d_model // n_heads
        self.W_Q, self.W_K, self.W_V, self.W_O = (nn.Linear(d_model, d_model) for _ in range(4))
        self.ffn = feed_forward(d_model, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None) -> Tensor:
        """x (B, L, D), bias broadcastable to (B, H, L, L) -> (B, L, D)."""
        normed = self.norm1(x)
        q, k, v = (
            project(normed).unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)  # (B, H, L, D/H)
            for project in (self.W_Q, self.W_K, self.W_V)
        )
        weights = self.dropout(causal_softmax(q @ k.mT * self.head_dim**-0.5, rel_pos_bias))  # (B, H, L, L)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (B, L, D)
        x = x + self.dropout(self.W_O(mixed))
        return x + self.ffn(self.norm2(x))


class HLLMModel(nn.Module):
    """Item vectors + position + time embeddings -> blocks -> scores of every item at every position.

    `item_embeddings` (V, D), or the path of a `.pt` file with them: row = token, row 0 = padding.
    `forward(seq_tokens (B, L), time_diffs (B, L) in seconds)` gives (B, L, V).

    `state="rechub"`: item vectors are L2-normalised on the way in, scores are cosines, temperature
    .07. `state="rechub-doc"`: raw vectors, raw dot products, temperature 1 (its loss divides by .1).

    Raises InputError where the vectors' shape is not (vocab_size, d_model).
    """

    item_embeddings: Tensor  # (V, D), frozen

    def __init__(
        self,
        item_embeddings: Tensor | str | Path,
        vocab_size: int,
        d_model: int = 512,
        n_heads: int = 8,
        n_layers: int = 4,
        max_seq_len: int = 256,
        dropout: float = 0.1,
        use_rel_pos_bias: bool = True,
        use_time_embedding: bool = True,
        num_time_buckets: int = 2048,
        time_bucket_fn: str = "sqrt",
        temperature: float | None = None,
        *,
        state: State = "rechub",
    ) -> None:
        super().__init__()
        check("state", state, STATES)
        check("time_bucket_fn", time_bucket_fn, BUCKET_FNS)
        self.vocab_size, self.d_model, self.n_heads, self.n_layers = vocab_size, d_model, n_heads, n_layers
        self.max_seq_len, self.use_rel_pos_bias = max_seq_len, use_rel_pos_bias
        self.use_time_embedding, self.num_time_buckets = use_time_embedding, num_time_buckets
        self.time_bucket_fn, self.state = time_bucket_fn, state
        self.temperature = TEMPERATURE[state] if temperature is None else temperature

        vectors = load_tensor(item_embeddings) if isinstance(item_embeddings, str | Path) else item_embeddings
        for axis, name, size in ((0, "vocab_size", vocab_size), (1, "d_model", d_model)):
            if vectors.dim() != 2 or vectors.shape[axis] != size:
                found = vectors.shape[axis] if vectors.dim() > axis else "none"
                raise InputError(
                    f"item_embeddings.shape[{axis}]={found} != {name}={size}: they must be (vocab_size, d_model), "
                    "row i the vector of token i, row 0 padding; hllm.formats.rechub.read_embeddings brings "
                    "other layouts into this one"
                )
        vectors = vectors.float()
        self.register_buffer("item_embeddings", self._unit(vectors) if state == "rechub" else vectors)
        self.position_embedding = nn.Embedding(max_seq_len, d_model)
        if use_time_embedding:
            self.time_embedding = nn.Embedding(num_time_buckets + 1, d_model, padding_idx=0)
        self.transformer_blocks = nn.ModuleList(
            HLLMTransformerBlock(d_model, n_heads, dropout) for _ in range(n_layers)
        )
        if use_rel_pos_bias:
            self.rel_pos_bias = RelPosBias(n_heads, max_seq_len, state=state)
        self.dropout = nn.Dropout(dropout)
        reset_parameters(self)

    def encode(self, seq_tokens: Tensor, time_diffs: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, D) of windows (B, L), as they are compared with the item vectors."""
        length = seq_tokens.shape[1]
        check_length(length, self.max_seq_len)
        x = self.item_embeddings[seq_tokens]  # (B, L, D)
        x = x + self.position_embedding.weight[:length]
        if self.use_time_embedding:
            seconds = torch.zeros_like(seq_tokens) if time_diffs is None else time_diffs
            x = x + self.time_embedding(time_buckets(seconds, self.num_time_buckets - 1, self.time_bucket_fn))
        x = self.dropout(x)
        bias = self.rel_pos_bias(length) if self.use_rel_pos_bias else None  # (1, H, L, L)
        for block in self.transformer_blocks:
            x = block(x, rel_pos_bias=bias)
        return self._unit(x) if self.state == "rechub" else x

    def forward(self, seq_tokens: Tensor, time_diffs: Tensor | None = None) -> Tensor:
        return self.encode(seq_tokens, time_diffs) @ self.item_embeddings.T / self.temperature  # (B, L, V)

    @staticmethod
    def _unit(x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=1e-8)  # leaves zero rows zero


def causal_softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax over keys up to the query; scores (B, H, L, L), bias broadcastable to it."""
    length = scores.shape[-1]
    future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
    if bias is not None:
        scores = scores + bias
    return scores.masked_fill(future, float("-inf")).softmax(-1)
