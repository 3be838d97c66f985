"""Texts of a catalogue to vectors in packs: nothing is padded, the prompt is run once a pack."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.prefix import MIN_TOKENS, common_prefix
from hllm.items.encoders.text import LanguageModelEncoder

PACK_TOKENS = 16_384  # of one forward on an accelerator


class PackedLanguageModelEncoder(LanguageModelEncoder):
    """As LanguageModelEncoder, whose vectors it gives up to rounding; for one pooling that reads the prompt too."""

    packed: PackedEncoder | None = None

    def try_packs(self) -> str:
        """Switch the model to packed attention; returns why it does not carry it, "" where it does."""
        if self.own is not None and (len(self.own.poolings) > 1 or not self.own.pools_prompt):
            return "its pooling reads several vectors, or leaves the prompt out"
        backbone = self.backbone
        layers = f"@{backbone.layers}" if backbone.layers else ""
        packed = PackedEncoder(backbone.model, self.poolings[0] + layers, pad_id=backbone.pad_id).eval()
        if packed.backbone.packed:
            self.packed = packed
            self.budget = PACK_TOKENS if backbone.device.type != "cpu" else None
        return packed.backbone.reason

    def _share_prefix(self, lengths: np.ndarray) -> None:
        if self.packed is None:
            super()._share_prefix(lengths)
            return
        n = common_prefix(self.flat, self.offsets)
        self.packed.set_prefix(
            self.flat[: n if n >= MIN_TOKENS and self.packed.backbone.causal else 0].tolist()
        )

    def _pooled(self, rows: np.ndarray) -> Tensor:
        if self.packed is None:
            return super()._pooled(rows)
        starts = self.offsets[rows] + len(self.packed.prefix)
        lengths = self.offsets[rows + 1] - starts
        index = np.repeat(starts - np.concatenate(([0], lengths.cumsum()[:-1])), lengths) + np.arange(
            lengths.sum()
        )
        return self.packed(torch.from_numpy(self.flat[index]), torch.from_numpy(lengths))


def packs_pay(device: torch.device, precision: str) -> bool:
    """Whether packs are faster than padded batches: where the variable-length kernel runs."""
    from hllm.items.encoders.packed_attention import varlen_works

    return device.type == "cuda" and precision in ("bf16", "fp16") and bool(varlen_works(device.index or 0))
