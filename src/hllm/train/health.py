"""Stopping a run that cannot lead anywhere, with the reason."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from hllm.errors import TrainingError
from hllm.packing import Batch

# Mean pairwise cosine above which vectors count as one direction. User vectors of a healthy run reach
# .999 while it still learns what is popular: what they share ranks the items, what they differ in follows.
COLLAPSED = 0.9999
FEW_USERS = 8  # fewer may well be alike: who bought the same things gets the same vector
SMALL = 512  # rows of a matrix
MASKED = 0.9  # share of negatives left out for likeness above which too few compete


def mean_cosine(vectors: Tensor) -> float:
    """Mean cosine between two different rows of `vectors` (n, d), n >= 2; 1 if all rows are zero."""
    unit = F.normalize(vectors.detach().double(), dim=1)
    n = unit.shape[0]
    if n < 2 or not bool(unit.any()):
        return 1.0
    total = float(unit.sum(0).square().sum())
    return (total - float(unit.square().sum())) / (n * (n - 1))


def effective_rank(vectors: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred unit rows (Roy and Vetterli, 2007):
    between 1 (one direction) and d (all of them alike)."""
    unit = F.normalize(vectors.detach().double(), dim=1)
    unit = unit - unit.mean(0)
    gram = unit.T @ unit
    if len(gram) <= SMALL:  # a GPU takes longer to load its solver than a CPU to solve
        gram = gram.cpu()
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=1e-300)
    return math.exp(float(torch.special.entr(share).sum()))


def check_masked(share: float, limit: float, epoch: int) -> None:
    """Raise TrainingError if `drop_similar` leaves out nearly all negatives: the loss then goes to 0 unlearned."""
    if share > MASKED:
        raise TrainingError(
            f"item vectors have collapsed in epoch {epoch}: drop_similar={limit:g} leaves out {share:.1%} of the "
            "negatives, so the loss falls to 0 and nothing is learned. Set drop_similar=null, which compares by "
            "identity, or use whiten=whiten, or a smaller learning_rate"
        )


def check_loss(loss: float, step: int) -> None:
    """Raise TrainingError if the loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} at step {step}: training stopped; the last checkpoint is kept. "
            "Try a smaller learning_rate (--set learning_rate=3e-4), or --set precision=fp32"
        )


def check_vectors(vectors: Tensor, kind: str, epoch: int) -> None:
    """Raise TrainingError if `vectors` (n, d) of `kind` ("item", "user") are NaN or one direction.

    Collapsed vectors give every item the same score, and some losses then look perfect; a
    checkpoint of such a model must never count as the best. Of fewer than 8 users nothing is concluded.
    """
    if not bool(torch.isfinite(vectors).all()):
        raise TrainingError(f"{kind} vectors are not finite in epoch {epoch}; try a smaller learning_rate")
    if vectors.shape[0] < (FEW_USERS if kind == "user" else 2):
        return
    cosine = mean_cosine(vectors)
    if cosine > COLLAPSED:
        raise TrainingError(
            f"{kind} vectors have collapsed to one direction in epoch {epoch} (mean cosine {cosine:.4f}): "
            "no ranking can be learned from them. Check the item embeddings (are all texts the same?), "
            "use whiten=whiten, or a smaller learning_rate"
        )


def distinct_users(batch: Batch) -> list[int]:
    """Rows of the users of `batch`, the first of each history: who met the same gets the same vector."""
    first: dict[bytes, int] = {}
    tokens = batch.tokens.cpu().numpy()
    for user, (a, b) in enumerate(pairwise(batch.offsets.tolist())):
        first.setdefault(tokens[a:b].tobytes(), user)
    return list(first.values())


def spaced_rows(vectors: Tensor, limit: int = 4096) -> Tensor:
    """At most `limit` evenly spaced rows: enough for a mean cosine, cheap for large catalogues."""
    return vectors if vectors.shape[0] <= limit else vectors[:: math.ceil(vectors.shape[0] / limit)]
