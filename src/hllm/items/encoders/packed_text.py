"""Texts for the packed encoder, and a trained item LLM as an encoder of new ones: learned tokens and right-aligned
positions included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hllm.items.encoders.backbones import Backbone
from hllm.items.encoders.heads import tokenise
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.tokens import Ragged, prompt_prefix, token_ids, without_prefix


class PackedTextEncoder:
    """Vectors of texts in packs (`hllm.items.encoders.base.Encoder`).

    limit  tokens of a text at most, its prompt included
    """

    budget: int | None = None

    def __init__(self, backbone: Backbone, encoder: PackedEncoder, limit: int) -> None:
        self.backbone, self.encoder, self.limit = backbone, encoder, limit
        self.dim = encoder.dim
        self.truncated = np.zeros(0, dtype=bool)

    def prepare(self, texts: list[str]) -> np.ndarray:
        """Tokenise `texts`; returns their lengths int64 (n,). DataError for one that begins unlike the prompt."""
        return self.take(self.tokenise(texts))

    def tokenise(self, texts: list[str]) -> tuple[Ragged, np.ndarray, np.ndarray]:
        """The ids of `texts` without the prompt's, their lengths int64 (n,) with it, and bool (n,): which were cut."""
        sequences, truncated = tokenise(self.backbone, texts, self.limit)
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        return without_prefix(sequences, self.encoder.prefix.tolist()), lengths, truncated

    def take(self, tokens: tuple[Ragged, np.ndarray, np.ndarray]) -> np.ndarray:
        """Make `tokens` those that `encode` reads; returns the texts' lengths int64 (n,)."""
        self.texts, lengths, self.truncated = tokens
        return lengths

    @torch.no_grad()
    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Vectors float32 (m, dim) of the prepared texts `rows` int64 (m,)."""
        was_training = self.encoder.training
        self.encoder.eval()
        wanted = torch.from_numpy(rows)
        lengths = self.texts.lengths[wanted]
        vectors = self.encoder(self.texts.take(wanted, lengths), lengths)
        self.encoder.train(was_training)
        return vectors.float().cpu().numpy()


def live_encoder(
    backbone: Backbone,
    texts: Sequence[str | None],
    pooling: str = "mean",
    prompt: str = "",
    max_tokens: int = 256,
    item_token_n: int = 0,
    right_aligned: bool = False,
) -> tuple[PackedEncoder, Ragged]:
    """The encoder of `backbone`, and the token ids of `texts` (whole, the prompt included; None = no text).

    Texts are cut to `max_tokens` beside the prompt, and so that learned item tokens still fit the model.
    """
    limit = text_limit(backbone, prompt, max_tokens, item_token_n)
    sequences = _tokenised(backbone, texts, limit)
    prefix = prompt_prefix(backbone, prompt, [ids for ids in sequences if ids])
    encoder = PackedEncoder(
        backbone.model,
        pooling,
        prefix,
        item_token_n,
        limit + item_token_n if right_aligned else None,
        backbone.pad_id,
    )
    return encoder, without_prefix(sequences, prefix)


def text_limit(backbone: Backbone, prompt: str, max_tokens: int, item_token_n: int = 0) -> int:
    """Tokens of a text at most, its prompt included: `max_tokens` beside the prompt, as many as the model reads."""
    return min(backbone.max_length - item_token_n, len(token_ids(backbone, [prompt])[0]) + max_tokens)


def more_texts(backbone: Backbone, encoder: PackedEncoder, texts: Sequence[str | None], limit: int) -> Ragged:
    """Token ids of texts added later (`LiveText.extend`), cut to `limit` tokens in all."""
    return without_prefix(_tokenised(backbone, texts, limit), encoder.prefix.tolist())


def _tokenised(backbone: Backbone, texts: Sequence[str | None], limit: int) -> list[list[int]]:
    there = [i for i, text in enumerate(texts) if text is not None]
    found, _ = tokenise(backbone, [texts[i] or "" for i in there], limit)
    sequences: list[list[int]] = [[] for _ in texts]
    for i, ids in zip(there, found, strict=True):
        sequences[i] = ids
    return sequences
