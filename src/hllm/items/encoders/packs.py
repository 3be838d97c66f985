"""Texts of a catalogue to vectors in packs: nothing is padded, the prompt is run once a pack."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hllm.errors import ConfigError
from hllm.items.encoders.packed import PackedEncoder
from hllm.items.encoders.prefix import MIN_TOKENS
from hllm.items.encoders.text import LanguageModelEncoder

PACK_TOKENS = 32_768  # of one forward on an accelerator
# Of one on a CPU in bf16, prompts counted: oneDNN gives products of fewer rows, to narrow outputs, to one core alone.
CPU_PACK_TOKENS = 4096
SAME = 0.999  # least cosine with float32's vectors at which vectors made in integers are taken
SAMPLE = 32  # texts on which that is tried


class PackedLanguageModelEncoder(LanguageModelEncoder):
    """As LanguageModelEncoder, whose vectors it gives up to rounding; for one pooling that reads the prompt too."""

    packed: PackedEncoder | None = None
    quantised = False

    def try_packs(self, quantise: bool = False) -> str:
        """Switch the model to packed attention; returns why it does not carry it, "" where it does.

        quantise   products run in 8-bit integers, on a CPU
        """
        if self.own is not None and (len(self.own.poolings) > 1 or not self.own.pools_prompt):
            return "its pooling reads several vectors, or leaves the prompt out"
        backbone = self.backbone
        layers = f"@{backbone.layers}" if backbone.layers else ""
        packed = PackedEncoder(backbone.model, self.poolings[0] + layers, pad_id=backbone.pad_id).eval()
        if packed.backbone.packed:
            fast = packed.backbone.speed_up(quantise)
            if quantise and not fast:
                return "its blocks are not those of Llama or BERT"
            self.packed, self.quantised = packed, quantise
            self.budget = _budget(backbone.model)
        return packed.backbone.reason

    def prepare(self, texts: list[str]) -> np.ndarray:
        """As of `LanguageModelEncoder`. ConfigError where 8-bit integers give other vectors than float32 does."""
        lengths = super().prepare(texts)
        if self.quantised and self.packed is not None:
            rows = np.linspace(0, len(texts) - 1, min(len(texts), SAMPLE)).astype(int)
            made, backbone = self.encode(rows), self.packed.backbone
            backbone.fast, integers = None, backbone.fast
            exact, backbone.fast = self.encode(rows), integers
            norms = np.linalg.norm(made, axis=1) * np.linalg.norm(exact, axis=1)
            least = float(((made * exact).sum(1) / np.maximum(norms, 1e-30)).min())
            if least < SAME:
                raise ConfigError(
                    f"{self.backbone.name} in int8 gives vectors whose cosine with float32's falls to {least:.4f}; "
                    f"{SAME} is the least that is taken: use --precision fp32"
                )
        return lengths

    def _share_prefix(self, n_tokens: int) -> None:
        if self.packed is None:
            super()._share_prefix(n_tokens)
            return
        shared = n_tokens if n_tokens >= MIN_TOKENS and self.packed.backbone.causal else 0
        self.packed.set_prefix(self.flat[:shared].tolist())

    def _pooled(self, rows: np.ndarray) -> Tensor:
        if self.packed is None:
            return super()._pooled(rows)
        starts = self.offsets[rows] + len(self.packed.prefix)
        lengths = self.offsets[rows + 1] - starts
        self.computed += len(self.packed.prefix) + int(lengths.sum())
        index = np.repeat(starts - np.concatenate(([0], lengths.cumsum()[:-1])), lengths) + np.arange(
            lengths.sum()
        )
        return self.packed(torch.from_numpy(self.flat[index]), torch.from_numpy(lengths))

    def _size(self, rows: np.ndarray) -> int:
        if self.packed is None:
            return super()._size(rows)
        return int((self.offsets[rows + 1] - self.offsets[rows]).sum())


def _budget(model: torch.nn.Module) -> int | None:
    """Tokens of a pack of `model`; None where packs are counted in texts."""
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return PACK_TOKENS
    return CPU_PACK_TOKENS if weight.dtype is torch.bfloat16 else None


def packs_pay(device: torch.device, precision: str) -> bool:
    """Whether packs are faster than padded batches: on a CPU, and where a GPU's variable-length kernel runs."""
    from hllm.items.encoders.packed_attention import varlen_works

    if device.type == "cpu":
        return True
    return device.type == "cuda" and precision in ("bf16", "fp16") and bool(varlen_works(device.index or 0))
