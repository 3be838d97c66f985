"""What a configuration leaves open, decided by the dataset before anything is made: so a run's identity tells it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hllm.evaluate.evaluation import parse_max_len
from hllm.losses.views import DRAWN, BatchItems, most_items, takes_batch_items
from hllm.train.config import chosen

if TYPE_CHECKING:
    from hllm.config import Config
    from hllm.data.dataset import Dataset, Histories

# Updating rows lazily costs some 40 small operations on the rows of a batch, updating all of them a pass over the
# table. On a CPU the two cost the same at about 100,000 items and 8,192 tokens: 6 times what a batch can hold.
LAZY_FACTOR = 6
# An epoch has about STEPS batches, of a power of two of targets within BATCHES: a few large batches an epoch learn
# less from the same events, and more are not better (benchmarks/results/recipe_h100.json).
STEPS, BATCHES = 40, (2048, 8192)
# A training has EPOCHS at most, or more where these have fewer steps than LEAST_STEPS. It ends after one PATIENCE-th
# of them without a better validation.
EPOCHS, LEAST_STEPS, PATIENCE = 60, 600, 6


def settled(data: Dataset, config: Config) -> Config:
    """`config` with what it leaves open chosen: batch and length by the number of targets, and `id_updates` "lazy"
    where a step takes the batch's items and these are few beside the catalogue."""
    config = _with_length(data, config)
    training = config.training
    if training.id_updates is not None or not config.items.id_embedding:
        return config
    lazy = False
    if training.optimizer == "adamw" and config.objective.loss in ("in_batch", "sampled"):
        counts, tokens = data.train_counts(), longest_batch(data.train_histories(), config)
        few = LAZY_FACTOR * most_items(config.objective, tokens) < int(np.count_nonzero(counts))
        lazy = few and takes_batch_items(counts, config.objective, tokens)
    return config.model_copy(update={"id_updates": "lazy" if lazy else "dense"})


def _with_length(data: Dataset, config: Config) -> Config:
    """`config` with `batch_tokens`, `epochs` and `patience` chosen where they are open; a patience only with epochs."""
    training = config.training
    if training.batch_tokens is not None and training.epochs is not None:
        return config
    n = targets_of_epoch(data, config)
    given: dict[str, int] = {}
    if training.batch_tokens is None:
        fitting = min(max(2 ** round(math.log2(max(1, n / STEPS))), BATCHES[0]), BATCHES[1])
        # A step of a trained item LLM costs what it encodes, so that few large ones are cheaper.
        given["batch_tokens"] = BATCHES[1] if config.items.live else fitting
    if training.epochs is None:
        steps = math.ceil(n / (training.batch_tokens or given["batch_tokens"])) or 1
        given["epochs"] = epochs = max(EPOCHS, math.ceil(LEAST_STEPS / steps))
        if training.patience is None:
            given["patience"] = max(1, round(epochs / PATIENCE / training.eval_every))
    return config.model_copy(update=given)


def targets_of_epoch(data: Dataset, config: Config) -> int:
    """Targets that an epoch has, about: pieces leave some out."""
    training = config.training
    sizes = np.maximum(np.diff(np.asarray(data.train_histories().offsets)) - 1, 0)
    max_len = parse_max_len(training.max_len)
    if training.windows == "random" and max_len is not None:
        sizes = np.minimum(sizes, max_len)
    return int(sizes.sum()) * training.passes


def longest_batch(histories: Histories, config: Config) -> int:
    """The most events that a training batch can have: its budget, or one longer window."""
    max_len = parse_max_len(config.training.max_len)
    longest = int(np.diff(np.asarray(histories.offsets)).max(initial=1)) - 1
    return max(chosen(config.training.batch_tokens), longest if max_len is None else min(longest, max_len))


def length(config: Config) -> str:
    """In a line, how long a settled configuration trains at most, and when it ends before."""
    t = config.training
    ends = "" if t.patience is None else f", ended by {t.patience} validations without a better one"
    return f"at most {t.epochs} epochs in batches of {t.batch_tokens:,} targets{ends}"


def choices(data: Dataset, config: Config) -> str | None:
    """In a line, how a step of a settled configuration spares the whole catalogue, or could; None for neither."""
    parts = []
    tokens = longest_batch(data.train_histories(), config)
    if takes_batch_items(data.train_counts(), config.objective, tokens):
        parts.append(
            f"each step takes {BatchItems.kind}, not all {data.n_candidates:,} (loss={config.objective.loss})"
        )
    n, m = config.objective.n_negatives or DRAWN, int(np.count_nonzero(data.train_counts()))
    if config.objective.loss == "sampled" and n >= m:
        parts.append(
            f"n_negatives={n:,} draws of {m:,} items: loss=cross_entropy compares with each item once"
        )
    if config.training.id_updates == "lazy":
        parts.append("ID rows are updated when a step needs them (id_updates=lazy)")
    return "; ".join(parts) or None
