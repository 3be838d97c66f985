"""Baselines by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hllm.baselines.ease import EASE, check_size
from hllm.baselines.item_knn import ItemKNN
from hllm.baselines.markov import Markov
from hllm.baselines.popularity import Popularity
from hllm.baselines.random import Random
from hllm.baselines.recent import RecentPopularity, RepeatLast
from hllm.errors import ConfigError, unknown

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

Baseline = Popularity | Markov | Random | ItemKNN | EASE | RecentPopularity | RepeatLast

_MAKERS: dict[str, Callable[[int], Baseline]] = {
    "popularity": lambda seed: Popularity(),
    "markov": lambda seed: Markov(),
    "random": Random,
    "item-knn": lambda seed: ItemKNN(),
    "ease": lambda seed: EASE(),
    "recent-popularity": lambda seed: RecentPopularity(),
    "repeat-last": lambda seed: RepeatLast(),
}
BASELINES = tuple(_MAKERS)
SHOWN = ("popularity", "markov", "random")  # beside a trained model, unless others are asked for


def check_baselines(names: Iterable[str], dataset: Dataset) -> None:
    """Raise ConfigError for an unknown name and DataError for one that `dataset` is too large for: before any work."""
    for name in names:
        if name not in _MAKERS:
            raise ConfigError(unknown("baseline", name, BASELINES))
        if name == "ease":
            check_size(dataset)


def fit_baseline(name: str, dataset: Dataset, seed: int = 0) -> Baseline:
    """Fit one baseline on the training events of `dataset`. Raises ConfigError for an unknown name."""
    check_baselines([name], dataset)
    return _MAKERS[name](seed).fit(dataset)
