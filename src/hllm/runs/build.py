"""From a dataset, its item embeddings and a configuration to a network ready to train."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hllm.config import Config
from hllm.errors import DataError
from hllm.items.source.frozen import FrozenItemSource
from hllm.items.source.whitening import Whitening
from hllm.models.hllm import HLLM

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.embed import ItemEmbeddings


def build_network(dataset: Dataset, config: Config, embeddings: ItemEmbeddings | None) -> HLLM:
    """A freshly initialised network on the CPU; the weights depend on `config.training.seed` alone.

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
    text = has_text = whitening = None
    if embeddings is not None:
        has_text = torch.from_numpy(embeddings.has_text)
        raw = torch.from_numpy(embeddings.vectors)
        whitening = Whitening.fit(raw[trained & has_text], config.items.whiten, config.items.whiten_rank)
        text = whitening.transform(raw, has_text)
    source = FrozenItemSource(
        trained,
        config.users.d_model,
        text,
        has_text,
        whitening,
        config.items.adapter_hidden,
        config.items.id_embedding,
    )
    return HLLM(config, source)


def empty_network(config: Config, shapes: dict[str, torch.Size]) -> HLLM:
    """A network of the shapes of saved weights, to load them into."""
    trained = torch.zeros(shapes["source.trained"], dtype=torch.bool)
    text = has_text = whitening = None
    if "source.text" in shapes:
        text = torch.zeros(shapes["source.text"])
        has_text = torch.zeros(shapes["source.has_text"], dtype=torch.bool)
        whitening = Whitening(
            torch.zeros(shapes["source.whitening.mean"], dtype=torch.float64),
            torch.zeros(shapes["source.whitening.basis"], dtype=torch.float64),
        )
    source = FrozenItemSource(
        trained,
        config.users.d_model,
        text,
        has_text,
        whitening,
        config.items.adapter_hidden,
        config.items.id_embedding,
    )
    return HLLM(config, source)
