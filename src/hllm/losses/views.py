"""Which items a training step needs: every trained one, or the batch's own and the negatives drawn for it.

Decided on the host and seeded by (seed, epoch, step), so that a resumed run, and every rank of a job, decides alike.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hllm.losses.config import ObjectiveConfig
from hllm.losses.hard import draw_hard, hard_share_of, nearest_items
from hllm.packing import Batch, ItemView

DRAWN = 512  # negatives a step where the configuration leaves their number open


class Views(Protocol):
    """Makes each step's `ItemView`.

    kind     says in a phrase what it holds
    classes  int64 (C,) tokens with a training event, by rising token
    device   where views are made
    """

    kind: str
    classes: np.ndarray
    device: torch.device

    negatives: Negatives

    def view(self, batch: Batch, at: tuple[int, int]) -> ItemView:
        """The view of `batch`, the step numbered `at` = (epoch, step in it)."""

    def refresh(self, vectors: Tensor) -> None:
        """Find hard negatives by the classes' vectors float32 (C, w), as they are scored."""


class Negatives:
    """Draws K items a step with replacement, by training events or evenly, and in part, where that is asked for and
    `refresh` has been told the items' vectors, from those nearest to the batch's targets; and log probabilities.

    counts   int64 (C,) training events of each class, all above 0
    log_q    float32 (C,), None where scores are not corrected. Of hard negatives: as if targets came by their counts
    nearest  int32 (C, n) the nearest classes of each class, None where there are no hard negatives
    """

    def __init__(self, counts: np.ndarray, objective: ObjectiveConfig, seed: int) -> None:
        self.drawn = objective.loss == "sampled"
        self.n = objective.n_negatives or DRAWN
        self.seed = seed
        hard = self.drawn and objective.negatives_by == "hard"
        self.n_hard = round(objective.hard_share * self.n) if hard else 0
        self.nearest: Tensor | None = None
        self.share = share = counts / counts.sum()
        if self.drawn and objective.negatives_by == "uniform":
            share = np.full(len(counts), 1 / len(counts))
        self.cdf = np.cumsum(share)
        corrected = objective.logq and objective.loss in ("sampled", "in_batch")
        self.log_q = torch.from_numpy(np.log(share)).float() if corrected else None

    def draw(self, at: tuple[int, int]) -> np.ndarray:
        """Classes int64 (K,); the last `n_hard` give way to hard negatives once there are any."""
        u = np.random.default_rng([self.seed, 0x9E6A, *at]).random(self.n) * self.cdf[-1]
        return np.minimum(np.searchsorted(self.cdf, u, side="right"), len(self.cdf) - 1)

    def draw_hard(self, targets: Tensor, at: tuple[int, int]) -> Tensor:
        """Classes int64 (n_hard,) near to `targets` int64 (T,), classes or -1, on their device."""
        assert self.nearest is not None
        u = np.random.default_rng([self.seed, 0x4A2D, *at]).random((2, self.n_hard))
        return draw_hard(targets, self.nearest, torch.from_numpy(u).to(targets.device, non_blocking=True))

    def set_nearest(self, nearest: Tensor) -> None:
        """Draw hard negatives from `nearest` int32 (C, n) from now on."""
        self.nearest = nearest
        if self.log_q is not None:
            h = self.n_hard / self.n
            share = (1 - h) * self.share + h * hard_share_of(self.share, nearest)
            # What is nobody's neighbour and never drawn is no negative: its own score as a target stays finite.
            floor = share[share > 0].min()
            self.log_q = torch.from_numpy(np.log(share.clip(min=floor))).float().to(self.log_q.device)


class WholeCatalogue:
    """Every trained item is encoded and is a class, each step: what the full cross entropy needs.

    counts  int64 (n_items + 1,) training events of each token
    """

    kind = "every trained item"

    def __init__(
        self, counts: np.ndarray, objective: ObjectiveConfig, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.classes = tokens = np.flatnonzero(counts)
        rows = np.full(len(counts), -1, dtype=np.int64)
        rows[tokens] = np.arange(len(tokens))
        self.device = torch.device(device)
        self.tokens = torch.from_numpy(tokens).to(device)
        self.rows = torch.from_numpy(rows).to(device)
        self.negatives = Negatives(counts[tokens], objective, seed)
        if self.negatives.log_q is not None:
            self.negatives.log_q = self.negatives.log_q.to(device)

    def refresh(self, vectors: Tensor) -> None:
        self.negatives.set_nearest(nearest_items(vectors))

    def view(self, batch: Batch, at: tuple[int, int]) -> ItemView:
        drawn, targets = None, self.rows[batch.targets]
        if self.negatives.drawn:
            drawn = torch.from_numpy(self.negatives.draw(at)).to(self.tokens.device, non_blocking=True)
            if self.negatives.nearest is not None:
                n = self.negatives.n_hard
                drawn = torch.cat((drawn[: len(drawn) - n], self.negatives.draw_hard(targets, at)))
        # Padding's row is -1: a target that there is none of, and an input that is never looked at.
        return ItemView(
            tokens=self.tokens,
            inputs=self.rows[batch.tokens].clamp(min=0),
            targets=targets,
            n_classes=len(self.tokens),
            negatives=drawn,
            log_q=self.negatives.log_q,
        )


class BatchItems:
    """The batch's own items and K drawn ones, each once: the cost follows the batch, not the catalogue.

    `size` fixes M, so that shapes repeat: entries beyond the items needed hold padding and are not `valid`.
    """

    kind = "the batch's items and its negatives"

    def __init__(
        self,
        counts: np.ndarray,
        objective: ObjectiveConfig,
        seed: int,
        device: torch.device | str = "cpu",
        size: int | None = None,
    ) -> None:
        self.classes = np.flatnonzero(counts)
        self.negatives = Negatives(counts[self.classes], objective, seed)
        self.device = torch.device(device)
        self.size = size

    def view(self, batch: Batch, at: tuple[int, int]) -> ItemView:
        inputs, targets = batch.tokens.cpu().numpy(), batch.targets.cpu().numpy()
        drawn = self.classes[self._draw(targets, at)] if self.negatives.drawn else np.zeros(0, dtype=np.int64)
        wanted, where = np.unique(np.concatenate((inputs, targets, drawn)), return_inverse=True)
        if wanted[0] == 0:  # positions with nothing to predict, and left-over ones
            wanted, where = wanted[1:], where - 1
        n, m = len(inputs), self.size or len(wanted)
        if len(wanted) > m:
            raise ValueError(f"the batch needs {len(wanted)} items, its view holds {m}")
        tokens = np.zeros(m, dtype=np.int64)
        tokens[: len(wanted)] = wanted
        log_q = None
        if self.negatives.log_q is not None:
            log_q = torch.zeros(m)
            log_q[: len(wanted)] = self.negatives.log_q[np.searchsorted(self.classes, wanted)]
        return ItemView(
            tokens=self._move(tokens),
            inputs=self._move(where[:n].clip(min=0)),
            targets=self._move(where[n : 2 * n]),
            n_classes=m,
            valid=None if self.size is None else self._move(np.arange(m) < len(wanted)),
            negatives=self._move(where[2 * n :]) if self.negatives.drawn else None,
            log_q=None if log_q is None else log_q.to(self.device),
        )

    def refresh(self, vectors: Tensor) -> None:
        self.negatives.set_nearest(nearest_items(vectors).cpu())

    def _draw(self, targets: np.ndarray, at: tuple[int, int]) -> np.ndarray:
        """Classes int64 (K,) drawn for a batch of `targets` (T,), tokens."""
        drawn = self.negatives.draw(at)
        if self.negatives.nearest is None:
            return drawn
        rows = np.where(targets > 0, np.searchsorted(self.classes, targets), -1)
        hard = self.negatives.draw_hard(torch.from_numpy(rows), at).numpy()
        return np.concatenate((drawn[: len(drawn) - len(hard)], hard))

    def _move(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device, non_blocking=True)


def make_views(
    counts: np.ndarray,
    objective: ObjectiveConfig,
    batch_tokens: int,
    seed: int,
    device: torch.device | str = "cpu",
    whole: bool | None = None,
) -> WholeCatalogue | BatchItems:
    """The cheaper view that carries the loss.

    counts  int64 (n_items + 1,) training events of each token
    whole   True, False: which one; None: the batch's items where the loss allows it and they are fewer than half
            of the trained ones

    The full cross entropy compares with every trained item, so it always takes the whole catalogue.
    """
    if whole is None:
        whole = not takes_batch_items(counts, objective, batch_tokens)
    if whole:
        return WholeCatalogue(counts, objective, seed, device)
    fixed = torch.device(device).type != "cpu"
    return BatchItems(counts, objective, seed, device, most_items(objective, batch_tokens) if fixed else None)


def most_items(objective: ObjectiveConfig, batch_tokens: int) -> int:
    """Items that a batch of at most `batch_tokens` events and its negatives can hold."""
    return 2 * batch_tokens + (objective.n_negatives or DRAWN) * (objective.loss == "sampled")


def takes_batch_items(counts: np.ndarray, objective: ObjectiveConfig, batch_tokens: int) -> bool:
    """Whether a step takes the batch's items: the loss allows it, and they are fewer than half of the trained ones."""
    full = objective.loss in ("cross_entropy", "nce")
    return not full and 2 * most_items(objective, batch_tokens) < int(np.count_nonzero(counts))
