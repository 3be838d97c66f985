"""A small network of text and ids, and batches for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hllm.config import load_config
from hllm.items.source.frozen import FrozenItemSource
from hllm.items.source.whitening import Whitening
from hllm.models.hllm import HLLM
from hllm.packing import Batch, offsets_of

N_ITEMS, UNTRAINED, WITHOUT_TEXT = 12, (5, 11, 12), (3, 12)


@pytest.fixture
def make_network() -> Callable[..., HLLM]:
    """A network of 12 items in float64; every parameter is random, also those that start at zero."""

    def make(dtype: torch.dtype = torch.float64, **settings: Any) -> HLLM:
        torch.manual_seed(0)
        chosen = {"d_model": 16, "n_heads": 2, "n_layers": 2, "dropout": 0.0, "mask_prob": 0.0} | settings
        config = load_config("sasrec", overrides={"max_distance": 6, **chosen})
        trained = torch.ones(N_ITEMS + 1, dtype=torch.bool)
        trained[[0, *UNTRAINED]] = False
        has_text = torch.ones(N_ITEMS + 1, dtype=torch.bool)
        has_text[[0, *WITHOUT_TEXT]] = False
        raw = torch.randn(N_ITEMS + 1, 10) * has_text.unsqueeze(1)
        whitening = Whitening.fit(raw[trained & has_text], "whiten", 8)
        source = FrozenItemSource(
            trained, 16, whitening.transform(raw, has_text), has_text, whitening, adapter_hidden=20
        )
        network = HLLM(config, source)
        for parameter in network.parameters():
            if parameter.ndim:
                torch.nn.init.normal_(parameter, std=0.3)
        return network.to(dtype)

    return make


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
