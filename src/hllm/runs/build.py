"""From a dataset, its item embeddings and a configuration to a network ready to train."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.config import Config
from hllm.errors import DataError
from hllm.evaluate.evaluation import parse_max_len
from hllm.items.live_items import LiveItems
from hllm.items.source.base import ItemSource
from hllm.items.source.build import make_source
from hllm.models.hllm import HLLM, Network
from hllm.models.scorers import make_scorer
from hllm.models.user_models import make_user_model
from hllm.train.step import use_bf16

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings


def build_network(
    dataset: Dataset,
    config: Config,
    embeddings: ItemEmbeddings | None,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Network:
    """A freshly initialised network; the weights depend on the seed alone, and are drawn on the CPU.

    `device` computes a live source's first vectors, where the store does not hold them.

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
    raw = has_text = live = None
    fields = 1
    if isinstance(embeddings, LiveItems):
        live = partial(_live, config, trained, embeddings, device)
    elif embeddings is not None:
        raw = torch.from_numpy(np.asarray(embeddings.vectors))
        has_text = torch.from_numpy(embeddings.has_text)
        fields = len(embeddings.spec.get("parts", [None]))
    source = make_source(config.items, config.users.d_model, trained, raw, has_text, live, fields)
    return with_source(source, config).to(device)


def _live(config: Config, trained: torch.Tensor, made: LiveItems, device: torch.device) -> ItemSource:
    from hllm.items.source.live_build import make_live

    runtime, bf16 = config.runtime, use_bf16(config.runtime, device)
    return make_live(
        config.items, config.users.d_model, trained, made, device,
        runtime.item_gradients, runtime.item_chunk_tokens, bf16,
    )  # fmt: skip


def with_source(source: ItemSource, config: Config, user_llm: dict[str, Any] | None = None) -> Network:
    """A network over `source`, its user model and scorer freshly initialised.

    user_llm  a user LLM's own configuration, where a finished run is rebuilt
    """
    max_len = parse_max_len(config.training.max_len)
    user_model = make_user_model(config.users, config.scorer, source.width, max_len, user_llm)
    return Network(source, HLLM(user_model, make_scorer(config.scorer)))
