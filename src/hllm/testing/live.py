"""A tiny live text source: enough of an item LLM to prove the contract of items/source/base.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hllm.items.source.base import ItemSource, Lease


class TinyLiveText(ItemSource):
    """Six made-up words an item through a transformer layer with dropout, mean-pooled, in chunks.

    `lease` caches gradients: chunks without a graph and the random state of each, then, with the gradient at the
    vectors, the chunks again with a graph. `encoded` counts the items that went through the layer.
    """

    static = False

    def __init__(
        self, n_items: int, width: int, chunk: int = 7, dropout: float = 0.1, cached: bool = True
    ) -> None:
        super().__init__()
        self.width = width
        self.chunk = chunk
        self.cached = cached
        self.encoded = 0
        words = torch.randint(0, 50, (n_items + 1, 6), generator=torch.Generator().manual_seed(1))
        self.register_buffer("words", words)
        self.embedding = nn.Embedding(50, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True)

    @property
    def n_items(self) -> int:
        return self.get_buffer("words").shape[0] - 1

    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (n, width) of `tokens` int64 (n,)."""
        self.encoded += len(tokens)
        vectors: Tensor = self.layer(self.embedding(self.get_buffer("words")[tokens])).mean(1)
        return vectors

    def lease(self, tokens: Tensor) -> Lease:
        if not self.cached:
            return super().lease(tokens)
        parts, states, vectors = tokens.split(self.chunk), [], []
        with torch.no_grad():
            for part in parts:
                states.append(torch.get_rng_state())
                vectors.append(self.encode(part))

        def spend(grad: Tensor) -> None:
            after = torch.get_rng_state()
            for part, state, share in zip(parts, states, grad.split(self.chunk), strict=True):
                torch.set_rng_state(state)
                with torch.enable_grad():
                    self.encode(part).backward(share)
            torch.set_rng_state(after)

        return Lease(torch.cat(vectors).requires_grad_(), spend)

    def extend(self, text: Tensor | None, has_text: Tensor) -> None:
        words = torch.zeros(has_text.shape[0], 6, dtype=torch.long)
        self.words = torch.cat((self.get_buffer("words"), words))

    def spec(self) -> dict[str, Any]:
        return {"kind": "tiny_live_text", "n_items": self.n_items, "width": self.width}
