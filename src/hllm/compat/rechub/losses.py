"""torch-rechub's losses. Both of its "NCE" losses are softmax cross entropy over the whole vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hllm.compat.rechub.states import check

REDUCTIONS = ("mean", "sum", "none")
NEGATIVES = ("vocabulary", "in-batch")


class NCELoss(nn.Module):
    """Cross entropy of logits (N, V) / temperature against targets (N,), those of `ignore_index` left out.

    Where every target is ignored, none is: the original's mask then does not apply.
    """

    def __init__(self, temperature: float = 1.0, ignore_index: int = 0, reduction: str = "mean") -> None:
        super().__init__()
        check("reduction", reduction, REDUCTIONS)
        self.temperature, self.ignore_index, self.reduction = temperature, ignore_index, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(logits / self.temperature, targets, reduction="none")  # (N,)
        return _reduce(loss, targets, self.ignore_index, self.reduction)


class InBatchNCELoss(nn.Module):
    """Cross entropy of embeddings (N, D) against rows `targets` (N,) of item_embeddings (V, D).

    `negatives="vocabulary"` is the original: despite its name it takes every item as a negative.
    `negatives="in-batch"` is what the name says: the other targets of the batch, where those
    that are the positive's own item are left out.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        ignore_index: int = 0,
        reduction: str = "mean",
        *,
        negatives: str = "vocabulary",
    ) -> None:
        super().__init__()
        check("reduction", reduction, REDUCTIONS)
        check("negatives", negatives, NEGATIVES)
        self.temperature, self.ignore_index, self.reduction = temperature, ignore_index, reduction
        self.negatives = negatives

    def forward(self, embeddings: Tensor, item_embeddings: Tensor, targets: Tensor) -> Tensor:
        if self.negatives == "vocabulary":
            loss = F.cross_entropy(
                embeddings @ item_embeddings.T / self.temperature, targets, reduction="none"
            )
        else:
            logits = embeddings @ item_embeddings[targets].T / self.temperature  # (N, N)
            row = torch.arange(len(targets), device=targets.device)
            same = (targets[:, None] == targets[None, :]) & (row[:, None] != row[None, :])
            same = same | (targets == self.ignore_index)[None, :] & (row[:, None] != row[None, :])
            loss = F.cross_entropy(logits.masked_fill(same, float("-inf")), row, reduction="none")
        return _reduce(loss, targets, self.ignore_index, self.reduction)


def _reduce(loss: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    kept = targets != ignore_index
    if kept.any():
        loss = loss[kept]
    return loss if reduction == "none" else getattr(loss, reduction)()
