"""Centring and whitening of raw LLM embeddings.

Raw LLM embeddings of different items are nearly parallel (mean cosine .98 for mean-pooled
SmolLM2 titles), so a dot product between them says little. Removing the mean and scaling the
principal directions to equal variance undoes that (Mu and Viswanath, 2018; Su et al., 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hllm.errors import DataError

EPSILON = 1e-6  # relative to the largest variance: directions below it are noise, not signal


class Whitening(nn.Module):
    """y = (x - mean) @ basis, fitted once on training items, saved with the run.

    mean float64 (d,), basis float64 (d, r). Fitted in float64 over the rows of items that have
    text and occur in training, never over padding (protocol.md, "Text and embeddings").
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, mean: Tensor, basis: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)

    @classmethod
    def fit(cls, rows: Tensor, mode: str, rank: int) -> Whitening:
        """Fit on `rows` (n, d). Modes: "whiten" (mean and `rank` principal directions, unit variance),
        "center" (mean, one common scale), "none" (raw vectors). Raises DataError if there is no row."""
        if mode != "none" and not len(rows):
            raise DataError(
                "no item with text has a training event, so there is nothing to centre or whiten by; "
                "use whiten=none, or item_llm=null for ids alone"
            )
        x = rows.double()
        least = 1e-12 * x.square().mean()  # no variance is taken for less: equal rows differ by rounding
        d = x.shape[1]
        mean = torch.zeros(d, dtype=torch.float64) if mode == "none" else x.mean(0)
        if mode == "none":
            return cls(mean, torch.eye(d, dtype=torch.float64))
        x = x - mean
        if mode == "center":
            scale = x.square().mean().sqrt().clamp(min=1e-12)
            return cls(mean, torch.eye(d, dtype=torch.float64) / scale)
        variance, directions = torch.linalg.eigh(x.T @ x / max(len(x) - 1, 1))
        variance, directions = variance.flip(0), directions.flip(1)  # largest first
        usable = int((variance > EPSILON * variance[0].clamp(min=1e-300)).sum())
        r = max(1, min(rank, usable))
        # An eigenvector's sign is arbitrary; fixing it makes two fits agree.
        signs = torch.sign(directions[directions.abs().argmax(0), torch.arange(d)])
        scale = (variance[:r] + EPSILON * variance[0]).clamp(min=least).clamp(min=1e-300).sqrt()
        return cls(mean, (directions * signs)[:, :r] / scale)

    def transform(self, vectors: Tensor, has_text: Tensor) -> Tensor:
        """Transform raw vectors (n, d) to float32 (n, r); rows without text stay zero."""
        out = (vectors.double() - self.mean) @ self.basis
        return (out * has_text.unsqueeze(1)).float()
