"""Settings of the training objective."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from hllm.settings import INT_MAX, Settings


class ObjectiveConfig(Settings):
    """The loss. "nce" is torch-rechub's name for cross entropy over every item."""

    OFF: ClassVar[dict[str, Any]] = {"label_smoothing": 0.0}

    loss: Literal["cross_entropy", "nce", "in_batch", "sampled"] = "cross_entropy"
    # Divides the scores once more, in the loss alone.
    loss_temperature: float = Field(default=1.0, ge=1e-4, le=1e4)
    # in_batch: targets of other users taken as negatives, at most (None: all). sampled: items drawn (None: 512).
    n_negatives: int | None = Field(default=None, ge=1, le=INT_MAX)
    # sampled: drawn by training events, evenly, or in part from the items nearest to the batch's targets, found anew
    # every epoch; what stands in the user's own training history is then no negative.
    negatives_by: Literal["counts", "uniform", "hard"] = "counts"
    # Of the negatives, what is drawn from the nearest; the rest comes by counts.
    hard_share: float = Field(default=0.5, gt=0, le=1)
    logq: bool = True  # in_batch, sampled: scores are corrected for how often an item is a negative
    # in_batch, sampled: what stands in the user's training history, also outside the window, is no negative. Takes
    # 8 bytes a training event on the device.
    mask_history: bool = False
    # sampled, in_batch: negatives whose item is closer to the target than this cosine are left out. ByteDance's
    # is .99; vectors that collapse then have no negatives, and a loss of 0 (train/health.py looks for it).
    drop_similar: float | None = Field(default=None, gt=0, le=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)

    def without_effect(self) -> dict[str, str]:
        if self.loss in ("cross_entropy", "nce"):
            reason = f"loss={self.loss} competes with every item; in_batch and sampled choose negatives"
            return dict.fromkeys(
                ("n_negatives", "negatives_by", "hard_share", "logq", "mask_history", "drop_similar"), reason
            )
        found = {"label_smoothing": f"it spreads over every item, which loss={self.loss} never sees"}
        if self.loss == "in_batch":
            found["negatives_by"] = "loss=in_batch draws none: its negatives are the batch's own targets"
        if self.negatives_by != "hard" or self.loss == "in_batch":
            found["hard_share"] = "only negatives_by=hard draws from the nearest items"
        elif self.loss == "sampled":
            found["mask_history"] = "negatives_by=hard always leaves the user's own items out"
        return found
