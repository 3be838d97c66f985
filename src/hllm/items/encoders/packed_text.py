"""A trained item LLM as an encoder of new texts: learned tokens and right-aligned positions included."""

from __future__ import annotations

import numpy as np
import torch

from hllm.items.encoders.backbones import Backbone
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.tokens import Ragged, tokenise, without_prefix


class PackedTextEncoder:
    """Vectors of texts in packs (`hllm.items.encoders.text.Encoder`).

    limit  tokens of a text at most, its prompt included
    """

    def __init__(self, backbone: Backbone, encoder: PackedEncoder, limit: int) -> None:
        self.backbone, self.encoder, self.limit = backbone, encoder, limit
        self.dim = encoder.dim
        self.truncated = np.zeros(0, dtype=bool)

    def prepare(self, texts: list[str]) -> np.ndarray:
        """Tokenise `texts`; returns their lengths int64 (n,). DataError for one that begins unlike the prompt."""
        sequences, self.truncated = tokenise(self.backbone, texts, self.limit)
        self.texts: Ragged = without_prefix(sequences, self.encoder.prefix.tolist())
        return np.array([len(ids) for ids in sequences], dtype=np.int64)

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
