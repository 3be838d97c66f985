"""Baselines by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hllm.baselines.markov import Markov
from hllm.baselines.popularity import Popularity
from hllm.baselines.random import Random
from hllm.errors import ConfigError, unknown

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

BASELINES = ("popularity", "markov", "random")


def fit_baseline(name: str, dataset: Dataset, seed: int = 0) -> Popularity | Markov | Random:
    """Fit one baseline on the training events of `dataset`. Raises ConfigError for an unknown name."""
    if name == "popularity":
        return Popularity().fit(dataset)
    if name == "markov":
        return Markov().fit(dataset)
    if name == "random":
        return Random(seed).fit(dataset)
    raise ConfigError(unknown("baseline", name, BASELINES))
