"""Text in, vectors out: what every item encoder offers, and the encoder that is a language model."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hllm.errors import ArtifactError, DeviceError
from hllm.hardware import is_out_of_memory
from hllm.items.config import split_pooling
from hllm.items.encoders.backbones import Backbone, table_rows
from hllm.items.encoders.pooling import pool
from hllm.items.encoders.prefix import SharedPrefix, common_prefix, share_prefix
from hllm.items.encoders.tokens import token_ids, tokenise


class Encoder(Protocol):
    """`prepare` sees all texts of a catalogue once; `encode` then returns the vectors of some of them."""

    dim: int
    truncated: np.ndarray  # bool (n,): prepared texts that were cut to max_tokens

    def prepare(self, texts: list[str]) -> np.ndarray:
        """Take in the whole catalogue; return the length int64 (n,) of each text, for batching."""

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Vectors float32 (m, dim) of the prepared texts `rows` int64 (m,), one batch."""


class LanguageModelEncoder:
    """Pooled states of a causal, encoder or encoder-decoder model (see `hllm.items.config.check_pooling`).

    Texts are padded on the right by hidden, existing ids, whatever side or token the tokenizer
    prefers; the pooled vector does not depend on it. `max_tokens` counts tokens beside the prompt.
    Truncation cuts the end of the text and keeps the special tokens that the tokenizer adds after it.
    """

    def __init__(self, backbone: Backbone, pooling: str, prompt: str = "", max_tokens: int = 256) -> None:
        self.pooling, layers = split_pooling(pooling)
        self.backbone = replace(backbone, layers=layers)
        self.dim = backbone.dim
        self.truncated = np.zeros(0, dtype=bool)
        prompt_length = len(token_ids(backbone, [prompt])[0])
        self.max_length = min(backbone.max_length, prompt_length + max_tokens)
        if prompt and prompt_length >= self.max_length:
            warnings.warn(
                f"the prompt's {prompt_length} tokens fill all {self.max_length} that {backbone.name} reads: "
                'items will look alike; use a shorter prompt, or none (--prompt "")',
                stacklevel=2,
            )
        self.prefix: SharedPrefix | None = None

    def prepare(self, texts: list[str]) -> np.ndarray:
        """Tokenise `texts` (whole, so that no token boundary depends on the prompt) and find their prefix.

        Raises ArtifactError where the tokenizer is not the model's, or has no vocabulary.
        """
        sequences, self.truncated = tokenise(self.backbone, texts, self.max_length)
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        self.offsets = np.concatenate(([0], lengths.cumsum()))
        self.flat = np.fromiter(
            (t for ids in sequences for t in ids), dtype=np.int64, count=int(lengths.sum())
        )
        self._check_tokens(len(texts))
        self.prefix = self._find_prefix(lengths)
        return lengths

    @torch.inference_mode()
    def encode(self, rows: np.ndarray) -> np.ndarray:
        """One forward for `rows`. DeviceError if the device's memory does not hold the batch."""
        skip = self.prefix.n_tokens if self.prefix else 0
        ids, mask = self._padded(rows, skip)
        tokens = f"{len(rows)} texts of {ids.shape[1] + skip} tokens"
        try:
            if self.prefix is not None:
                hidden, mask = self.prefix.hidden(ids, mask)
            else:
                hidden = self.backbone.states(self.backbone.hidden(ids, mask))
            return pool(hidden, mask, self.pooling).cpu().numpy()
        except (RuntimeError, MemoryError, IndexError, ValueError) as err:
            if is_out_of_memory(err):
                raise DeviceError(
                    f"{self.backbone.device} has too little memory for {tokens}; use --batch-size "
                    f"{max(1, len(rows) // 4)} or --device cpu"
                ) from err
            reason = " ".join(str(err).split())[:200]
            raise ArtifactError(
                f"{self.backbone.name} fails on {tokens}: {reason}; try a smaller --max-tokens"
            ) from err

    def _check_tokens(self, n_texts: int) -> None:
        """ArtifactError for ids that the model has no embedding for, or texts of unknown tokens alone."""
        tokenizer, found = self.backbone.tokenizer, {int(i) for i in np.unique(self.flat)}
        rows, advice = table_rows(self.backbone.model), "take both from the same place"
        if rows is not None and max(found) >= rows:
            raise ArtifactError(
                f"the tokenizer of {self.backbone.name} gives token id {max(found)}, its model knows only "
                f"{rows:,} (0 to {rows - 1:,}): they do not belong together; {advice}"
            )
        unknown = tokenizer.unk_token_id
        known = found - {unknown, self.backbone.pad_id, *tokenizer.all_special_ids}
        # Without its vocabulary file a tokenizer is made that knows special tokens, at most the space too.
        if n_texts > 1 and len(known) <= (unknown in found):
            raise ArtifactError(
                f"the tokenizer of {self.backbone.name} knows no word of these {n_texts:,} texts: its "
                f"vocabulary file is missing or another model's; {advice}"
            )

    @torch.inference_mode()
    def _find_prefix(self, lengths: np.ndarray) -> SharedPrefix | None:
        n_tokens = common_prefix(self.flat, self.offsets)
        ends = np.array([lengths.argmin(), lengths.argmax()])  # two lengths, so that padding is tried too
        return share_prefix(self.backbone, *self._padded(ends, 0), n_tokens)

    def _padded(self, rows: np.ndarray, skip: int) -> tuple[Tensor, Tensor]:
        """Ids and mask int64 (m, longest) of `rows` less their first `skip` tokens, padded on the right."""
        starts, ends = self.offsets[rows] + skip, self.offsets[rows + 1]
        width = int((ends - starts).max())
        index = starts[:, None] + np.arange(width)
        mask = index < ends[:, None]
        ids = np.where(mask, self.flat[np.where(mask, index, 0)], self.backbone.pad_id)
        device = self.backbone.device
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)
