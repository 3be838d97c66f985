"""Frozen text vectors: a table made once by an item LLM, and a learned adapter over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hllm.items.source.base import ItemSource
from hllm.items.source.whitening import Whitening


class TextTable(ItemSource):
    """adapter(whitened text vector); an item without text has one learned vector instead.

    Without an adapter the text vectors themselves are the item vectors, nothing is learned, and an item without
    text has the zero vector (torch-rechub's HLLM).

    table     float32 (n_items + 1, r) transformed text vectors, row = token
    has_text  bool (n_items + 1,)
    rank      of the vectors that the adapter takes, where it is not the table's
    """

    table: Tensor
    has_text: Tensor

    def __init__(
        self,
        table: Tensor,
        has_text: Tensor,
        whitening: Whitening | None = None,
        width: int | None = None,
        hidden: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        rank = table.shape[1] if rank is None else rank
        self.register_buffer("table", table)
        self.register_buffer("has_text", has_text)
        self.whitening = whitening
        self.adapter: nn.Sequential | None = None
        self.width = rank
        if hidden is not None:
            assert width is not None
            self.width = width
            self.adapter = make_adapter(rank, hidden, width)
            self.no_text = nn.Parameter(torch.zeros(width))

    @property
    def n_items(self) -> int:
        return self.has_text.shape[0] - 1

    def rows(self, tokens: Tensor) -> Tensor:
        """What the adapter takes: transformed text vectors (n, r) of `tokens` int64 (n,)."""
        return self.table[tokens]

    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (n, width) of `tokens` int64 (n,)."""
        rows = self.rows(tokens)
        if self.adapter is None:
            return rows
        vectors = self.adapter(rows)
        return torch.where(self.has_text[tokens].unsqueeze(1), vectors, self.no_text.to(vectors.dtype))

    def extend(self, text: Tensor | None, has_text: Tensor) -> None:
        """Append items, transformed by the run's own statistics."""
        assert text is not None and self.whitening is not None
        device = self.table.device
        new = self.whitening.transform(text.to(device), has_text.to(device))
        self.table = torch.cat((self.table, new))
        self.has_text = torch.cat((self.has_text, has_text.to(device)))

    def spec(self) -> dict[str, Any]:
        whitening = None if self.whitening is None else list(self.whitening.basis.shape)
        hidden = None if self.adapter is None else self.get_parameter("adapter.0.bias").shape[0]
        return {
            "kind": "text_table",
            "n_items": self.n_items,
            "rank": self.table.shape[1],
            "whitening": whitening,
            "width": self.width,
            "hidden": hidden,
        }


def make_adapter(rank: int, hidden: int, width: int) -> nn.Sequential:
    """rank -> hidden -> width with GELU; weights start as N(0, .02), biases at zero."""
    layers = nn.Linear(rank, hidden), nn.Linear(hidden, width)
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.GELU(), layers[1])
