"""torch-rechub's HSTU (Zhai et al., 2024, "Actions Speak Louder than Words"), in both states."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.compat.rechub.bias import RelativeBucketedTimeAndPositionBias, RelPosBias
from hllm.compat.rechub.hllm import causal_softmax, feed_forward
from hllm.compat.rechub.states import (
    BUCKET_FNS,
    BUCKET_UNITS,
    STATES,
    SettingError,
    State,
    check,
    check_heads,
    check_length,
    reset_parameters,
    time_buckets,
)

TIME_BUCKETS = {"rechub": 128, "rechub-doc": 2048}
ADDED_IN_0_9 = {
    "time_bucket_divisor": 1.0,
    "time_bucket_unit": "minutes",
    "tie_embeddings": True,
    "score_norm": "none",
    "temperature": 1.0,
    "use_output_bias": True,
    "scale_input_embedding": False,
    "l2_norm_eps": 1e-6,
}


class HSTULayer(nn.Module):
    """One HSTU layer, Eq. 2 to 4, without its residual: SiLU attention gated by U."""

    def __init__(
        self,
        d_model: int = 512,
        n_heads: int = 8,
        dqk: int = 64,
        dv: int = 64,
        dropout: float = 0.1,
        max_seq_len: int = 200,
        num_time_buckets: int = 128,
        time_bucket_fn: str = "sqrt",
        time_bucket_divisor: float = 1.0,
        time_bucket_unit: str = "minutes",
    ) -> None:
        super().__init__()
        check_heads(d_model, n_heads)
        self.d_model, self.n_heads, self.dqk, self.dv, self.max_seq_len = (
            d_model,
            n_heads,
            dqk,
            dv,
            max_seq_len,
        )
        self.norm_in = nn.LayerNorm(d_model)
        self.proj1 = nn.Linear(d_model, 2 * n_heads * (dqk + dv))
        self.rab = RelativeBucketedTimeAndPositionBias(
            n_heads, max_seq_len, num_time_buckets, time_bucket_fn, time_bucket_divisor, time_bucket_unit
        )
        self.norm_attn = nn.LayerNorm(n_heads * dv)
        self.proj2 = nn.Linear(n_heads * dv, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, padding_mask: Tensor | None = None, time_diffs: Tensor | None = None
    ) -> Tensor:
        """x (B, L, D), padding_mask bool (B, L) True for events, time_diffs (B, L) seconds -> (B, L, D)."""
        length = x.shape[1]
        projected = F.silu(self.proj1(self.norm_in(x)))
        q, k, u, v = split_heads(projected, self.n_heads, self.dqk, self.dv)  # q, k, v (B, H, L, ·)
        scores = q @ k.mT / math.sqrt(self.dqk) + self.rab(time_diffs, length)  # (B, H, L, L)
        allowed = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if padding_mask is not None:
            allowed = allowed & padding_mask[:, None, None, :]
        # No softmax: SiLU of a masked score is zero, and all weights are divided by a constant.
        weights = F.silu(scores.masked_fill(~allowed, -1e4)) / self.max_seq_len
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (B, L, H dv)
        return self.proj2(self.dropout(self.norm_attn(mixed) * u))


class HSTULayerDoc(nn.Module):
    """The layer of `rechub-doc`: softmax attention, sigmoid gate, feed-forward, both residuals inside."""

    def __init__(
        self, d_model: int = 512, n_heads: int = 8, dqk: int = 64, dv: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        check_heads(d_model, n_heads)
        self.d_model, self.n_heads, self.dqk, self.dv = d_model, n_heads, dqk, dv
        self.proj1 = nn.Linear(d_model, 2 * n_heads * (dqk + dv))
        self.proj2 = nn.Linear(n_heads * dv, d_model)
        self.ffn = feed_forward(d_model, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None) -> Tensor:
        """x (B, L, D), bias broadcastable to (B, H, L, L) -> (B, L, D)."""
        q, k, u, v = split_heads(self.proj1(self.norm1(x)), self.n_heads, self.dqk, self.dv)
        weights = self.dropout(causal_softmax(q @ k.mT * self.dqk**-0.5, rel_pos_bias))  # (B, H, L, L)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # (B, L, H dv)
        x = x + self.dropout(self.proj2(mixed * torch.sigmoid(u)))
        return x + self.ffn(self.norm2(x))


class HSTUBlock(nn.Module):
    """A stack of layers, each with its residual; (B, L, D) -> (B, L, D).

    `state="rechub-doc"` stacks `HSTULayerDoc` and takes `rel_pos_bias` instead of mask and times.
    """

    def __init__(
        self,
        d_model: int = 512,
        n_heads: int = 8,
        n_layers: int = 4,
        dqk: int = 64,
        dv: int = 64,
        dropout: float = 0.1,
        max_seq_len: int = 200,
        num_time_buckets: int = 128,
        time_bucket_fn: str = "sqrt",
        time_bucket_divisor: float = 1.0,
        time_bucket_unit: str = "minutes",
        *,
        state: State = "rechub",
    ) -> None:
        super().__init__()
        check("state", state, STATES)
        self.state = state
        sizes = (d_model, n_heads, dqk, dv, dropout)
        times = (max_seq_len, num_time_buckets, time_bucket_fn, time_bucket_divisor, time_bucket_unit)
        self.layers = nn.ModuleList(
            HSTULayerDoc(*sizes) if state == "rechub-doc" else HSTULayer(*sizes, *times)
            for _ in range(n_layers)
        )

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        time_diffs: Tensor | None = None,
        rel_pos_bias: Tensor | None = None,
    ) -> Tensor:
        for layer in self.layers:
            if self.state == "rechub-doc":
                x = layer(x, rel_pos_bias)
            else:
                x = x + layer(x, padding_mask, time_diffs)
        return x


class HSTUModel(nn.Module):
    """Token, position and time embeddings -> HSTU layers -> scores of every item at every position.

    `forward(x (B, L) tokens, time_diffs (B, L) in seconds)` gives (B, L, V); token 0 is padding.
    `state="rechub-doc"` scales inputs by sqrt(d_model), has an output layer of its own, lets events
    attend to padding, and knows none of `ADDED_IN_0_9`; it alone has `use_rel_pos_bias`.
    `num_time_buckets` defaults to 128 (`rechub-doc`: 2048).

    Raises SettingError for a setting that the chosen state does not have.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 512,
        n_heads: int = 8,
        n_layers: int = 4,
        dqk: int = 64,
        dv: int = 64,
        max_seq_len: int = 256,
        dropout: float = 0.1,
        use_time_embedding: bool = True,
        num_time_buckets: int | None = None,
        time_bucket_fn: str = "sqrt",
        time_bucket_divisor: float = 1.0,
        time_bucket_unit: str = "minutes",
        tie_embeddings: bool = True,
        score_norm: str = "none",
        temperature: float = 1.0,
        use_output_bias: bool = True,
        scale_input_embedding: bool = False,
        l2_norm_eps: float = 1e-6,
        *,
        use_rel_pos_bias: bool = True,
        state: State = "rechub",
    ) -> None:
        super().__init__()
        _check_settings(locals())
        doc = state == "rechub-doc"
        self.vocab_size, self.d_model, self.max_seq_len, self.state = vocab_size, d_model, max_seq_len, state
        self.n_heads, self.n_layers, self.tie_embeddings = n_heads, n_layers, tie_embeddings and not doc
        self.use_output_bias, self.scale_input_embedding = use_output_bias, doc or scale_input_embedding
        self.use_time_embedding = use_time_embedding
        self.num_time_buckets = TIME_BUCKETS[state] if num_time_buckets is None else num_time_buckets
        self.time_bucket_fn, self.time_bucket_divisor = time_bucket_fn, time_bucket_divisor
        self.time_bucket_unit, self.score_norm, self.l2_norm_eps = time_bucket_unit, score_norm, l2_norm_eps
        self.temperature = temperature
        self.input_scale = d_model**0.5 if doc or scale_input_embedding else 1.0

        self.token_embedding = nn.Embedding(vocab_size, d_model, padding_idx=0)
        self.position_embedding = nn.Embedding(max_seq_len, d_model)
        if use_time_embedding:
            # 0.9 uses every bucket; the older table has one more and freezes bucket 0 as padding.
            rows, padding = (self.num_time_buckets + 1, 0) if doc else (self.num_time_buckets, None)
            self.time_embedding = nn.Embedding(rows, d_model, padding_idx=padding)
        self.hstu_block = HSTUBlock(
            d_model, n_heads, n_layers, dqk, dv, dropout, max_seq_len, self.num_time_buckets,
            time_bucket_fn, time_bucket_divisor, time_bucket_unit, state=state,
        )  # fmt: skip
        self.rel_pos_bias = (
            RelPosBias(n_heads, max_seq_len, state=state) if doc and use_rel_pos_bias else None
        )
        tied = tie_embeddings and not doc
        self.output_bias = nn.Parameter(torch.zeros(vocab_size)) if tied and use_output_bias else None
        self.output_projection = None if tied else nn.Linear(d_model, vocab_size, bias=doc or use_output_bias)
        self.dropout = nn.Dropout(dropout)
        reset_parameters(self)
        if not doc:  # the older state left Xavier's values in the padding row
            with torch.no_grad():
                self.token_embedding.weight[0].zero_()

    def forward(self, x: Tensor, time_diffs: Tensor | None = None) -> Tensor:
        length = x.shape[1]
        check_length(length, self.max_seq_len)
        h = self.token_embedding(x) * self.input_scale + self.position_embedding.weight[:length]  # (B, L, D)
        if self.use_time_embedding:
            if time_diffs is None:
                time_diffs = torch.zeros_like(x)
            bucket = time_buckets(
                time_diffs,
                self.num_time_buckets - 1,
                self.time_bucket_fn,
                self.time_bucket_unit,
                self.time_bucket_divisor,
            )
            h = h + self.time_embedding(bucket)
        if self.state == "rechub-doc":
            bias = None if self.rel_pos_bias is None else self.rel_pos_bias(length)  # (1, H, L, L)
            return self._score(self.hstu_block(self.dropout(h), rel_pos_bias=bias))
        event = x.ne(0)  # (B, L)
        h = self.hstu_block(self.dropout(h * event.unsqueeze(-1)), event, time_diffs)
        return self._score(h * event.unsqueeze(-1))

    def _score(self, h: Tensor) -> Tensor:
        """Hidden states (B, L, D) -> scores (B, L, V)."""
        if self.output_projection is None:
            weight, bias = self.token_embedding.weight, self.output_bias
        else:
            weight, bias = self.output_projection.weight, self.output_projection.bias
        if self.score_norm == "l2":
            h, weight = (F.normalize(t, dim=-1, eps=self.l2_norm_eps) for t in (h, weight))
        return F.linear(h, weight, bias) / self.temperature


def _check_settings(given: dict[str, Any]) -> None:
    """Raise SettingError for a value that HSTUModel does not take, or that its state does not have."""
    check("state", given["state"], STATES)
    check("score_norm", given["score_norm"], ("none", "l2"))
    check("time_bucket_fn", given["time_bucket_fn"], BUCKET_FNS)
    check("time_bucket_unit", given["time_bucket_unit"], BUCKET_UNITS)
    if given["temperature"] <= 0:
        raise SettingError(f"temperature={given['temperature']} must be positive")
    doc = given["state"] == "rechub-doc"
    foreign = [name for name, default in ADDED_IN_0_9.items() if doc and given[name] != default]
    if not doc and not given["use_rel_pos_bias"]:
        foreign = ["use_rel_pos_bias"]
    if foreign:
        raise SettingError(f"HSTUModel(state={given['state']!r}) has no setting {', '.join(foreign)}")


def split_heads(projected: Tensor, n_heads: int, dqk: int, dv: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split (B, L, 2 H dqk + 2 H dv) into q, k (B, H, L, dqk), u (B, L, H dv), v (B, H, L, dv)."""
    q, k, u, v = projected.split((n_heads * dqk, n_heads * dqk, n_heads * dv, n_heads * dv), dim=-1)
    q, k, v = (t.unflatten(-1, (n_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return q, k, u, v
