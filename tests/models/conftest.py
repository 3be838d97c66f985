"""A small network of text and ids, and batches for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hllm.config import load_config
from hllm.items.source.build import make_source
from hllm.losses.config import ObjectiveConfig
from hllm.losses.views import WholeCatalogue
from hllm.models.hllm import Network
from hllm.packing import Batch, offsets_of
from hllm.runs.build import with_source

N_ITEMS, UNTRAINED, WITHOUT_TEXT = 12, (5, 11, 12), (3, 12)


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """A network of 12 items in float64; every parameter is random, also those that start at zero."""

    def make(dtype: torch.dtype = torch.float64, **settings: Any) -> Network:
        torch.manual_seed(0)
        chosen = {"d_model": 16, "n_heads": 2, "n_layers": 2, "dropout": 0.0, "mask_prob": 0.0} | settings
        text = {"item_llm": "tfidf", "adapter_hidden": 20, "whiten_rank": 8}
        config = load_config("hllm-lite", overrides={"max_distance": 6, **text, **chosen})
        trained = torch.ones(N_ITEMS + 1, dtype=torch.bool)
        trained[[0, *UNTRAINED]] = False
        has_text = torch.ones(N_ITEMS + 1, dtype=torch.bool)
        has_text[[0, *WITHOUT_TEXT]] = False
        raw = torch.randn(N_ITEMS + 1, 10) * has_text.unsqueeze(1)
        network = with_source(make_source(config.items, 16, trained, raw, has_text), config)
        for parameter in network.parameters():
            if parameter.ndim:
                torch.nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            network.get_parameter("source.parts.ids.weight")[~trained] = 0
        return network.to(dtype)

    return make


@pytest.fixture
def whole() -> WholeCatalogue:
    """The view of every trained item of `make_network`."""
    counts = torch.ones(N_ITEMS + 1, dtype=torch.long)
    counts[[0, *UNTRAINED]] = 0
    return WholeCatalogue(counts.numpy(), ObjectiveConfig(), seed=0)


@pytest.fixture
def forward(whole: WholeCatalogue) -> Callable[[Network, Batch], tuple[torch.Tensor, ...]]:
    """Queries (T, d), classes (9, d) and targets (T,) of a batch, from vectors encoded in one plain graph."""

    def run(network: Network, batch: Batch) -> tuple[torch.Tensor, ...]:
        view = whole.view(batch, (0, 0))
        outputs = network.model(batch, view, network.source.encode(view.tokens))
        return outputs.queries, outputs.classes, view.targets

    return run


@pytest.fixture
def make_batch() -> Callable[[list[list[int]]], Batch]:
    """Histories of tokens laid end to end; the target of a position is the token after it."""

    def make(histories: list[list[int]]) -> Batch:
        tokens = torch.tensor([t for history in histories for t in history], dtype=torch.long)
        targets = torch.tensor([t for history in histories for t in [*history[1:], 0]], dtype=torch.long)
        lengths = torch.tensor([len(history) for history in histories])
        times = torch.arange(len(tokens)) * 60
        return Batch(torch.arange(len(histories)), tokens, times, targets, offsets_of(lengths))

    return make
