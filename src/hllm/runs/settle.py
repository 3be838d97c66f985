"""What a configuration leaves open, decided by the dataset before anything is made: so a run's identity tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hllm.evaluate.evaluation import parse_max_len
from hllm.losses.views import BatchItems, most_items, takes_batch_items

if TYPE_CHECKING:
    from hllm.config import Config
    from hllm.data.dataset import Dataset, Histories

# Updating rows lazily costs some 40 small operations on the rows of a batch, updating all of them a pass over the
# table. On a CPU the two cost the same at about 100,000 items and 8,192 tokens: 6 times what a batch can hold.
LAZY_FACTOR = 6


def settled(data: Dataset, config: Config) -> Config:
    """`config` with `id_updates` chosen where it is open: "lazy" where a step takes the batch's items and these are
    few beside the catalogue."""
    training = config.training
    if training.id_updates is not None or not config.items.id_embedding:
        return config
    lazy = False
    if training.optimizer == "adamw" and config.objective.loss in ("in_batch", "sampled"):
        counts, tokens = data.train_counts(), longest_batch(data.train_histories(), config)
        few = LAZY_FACTOR * most_items(config.objective, tokens) < int(np.count_nonzero(counts))
        lazy = few and takes_batch_items(counts, config.objective, tokens)
    return config.model_copy(update={"id_updates": "lazy" if lazy else "dense"})


def longest_batch(histories: Histories, config: Config) -> int:
    """The most events that a training batch can have: its budget, or one longer window."""
    max_len = parse_max_len(config.training.max_len)
    longest = int(np.diff(np.asarray(histories.offsets)).max(initial=1)) - 1
    return max(config.training.batch_tokens, longest if max_len is None else min(longest, max_len))


def choices(data: Dataset, config: Config) -> str | None:
    """In a line, how a step of a settled configuration spares the whole catalogue; None where it does not."""
    parts = []
    tokens = longest_batch(data.train_histories(), config)
    if takes_batch_items(data.train_counts(), config.objective, tokens):
        parts.append(
            f"each step takes {BatchItems.kind}, not all {data.n_candidates:,} (loss={config.objective.loss})"
        )
    if config.training.id_updates == "lazy":
        parts.append("ID rows are updated when a step needs them (id_updates=lazy)")
    return "; ".join(parts) or None
