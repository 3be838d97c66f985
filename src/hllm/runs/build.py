"""From a dataset, its item embeddings and a configuration to a network ready to train."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hllm.config import Config
from hllm.errors import DataError
from hllm.evaluate.evaluation import parse_max_len
from hllm.items.source.base import ItemSource
from hllm.items.source.build import make_source
from hllm.models.hllm import HLLM, Network
from hllm.models.scorers import make_scorer
from hllm.models.user_models import make_user_model

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.embed import ItemEmbeddings


def build_network(dataset: Dataset, config: Config, embeddings: ItemEmbeddings | None) -> Network:
    """A freshly initialised network on the CPU; the weights depend on the seed alone.

    Whitening is fitted on the items that have text and occur in training. Raises DataError if there
    is nothing to train on.
    """
    trained = torch.from_numpy(dataset.train_counts() > 0)
    if int(trained.sum()) < 2:
        raise DataError(
            f"{dataset.meta['name']} has {int(trained.sum())} items with a training event; two are the least. "
            "Prepare it with weaker filters (--min-interactions) or another --split"
        )
    torch.manual_seed(config.training.seed)
    raw = has_text = None
    if embeddings is not None:
        raw, has_text = torch.from_numpy(embeddings.vectors), torch.from_numpy(embeddings.has_text)
    return with_source(make_source(config.items, config.users.d_model, trained, raw, has_text), config)


def with_source(source: ItemSource, config: Config) -> Network:
    """A network over `source`, its user model and scorer freshly initialised."""
    max_len = parse_max_len(config.training.max_len)
    user_model = make_user_model(config.users, config.scorer, source.width, max_len)
    return Network(source, HLLM(user_model, make_scorer(config.scorer)))
