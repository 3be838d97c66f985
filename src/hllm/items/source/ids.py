"""One learned vector an item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hllm.items.source.base import ItemSource, Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Ids(ItemSource):
    """A vector for each token. An item without a training event keeps the zero vector: there is nothing to learn
    it from (protocol.md, "Negatives"), no step asks for it, and text alone speaks for it.

    Where rows are updated lazily (train/lazy_rows.py), `on_lease(tokens)` brings the rows up to date before they are
    read and `on_grad(tokens, gradient)` takes their gradients; the weight then has no gradient of its own.
    """

    def __init__(self, n_items: int, width: int, trained: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.zeros(n_items + 1, width))
        self.on_lease: Callable[[Tensor], None] | None = None
        self.on_grad: Callable[[Tensor, Tensor], None] | None = None
        if trained is not None:
            nn.init.normal_(self.weight, std=0.02)
            with torch.no_grad():
                self.weight[~trained] = 0.0

    @property
    def n_items(self) -> int:
        return self.weight.shape[0] - 1

    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (n, width) of `tokens` int64 (n,)."""
        return nn.functional.embedding(tokens, self.weight)

    def lease(self, tokens: Tensor) -> Lease:
        if self.on_lease is None:
            return super().lease(tokens)
        self.on_lease(tokens)
        with torch.no_grad():
            rows = self.encode(tokens)
        assert self.on_grad is not None
        on_grad = self.on_grad
        return Lease(rows.detach().requires_grad_(), lambda grad: on_grad(tokens, grad))

    def tiles(self) -> Iterator[Tensor]:
        """The rows themselves, all at once: nothing has to be made."""
        yield self.weight.detach()

    def extend(self, text: Tensor | None, has_text: Tensor) -> None:
        new = self.weight.new_zeros(has_text.shape[0], self.width)
        self.weight = nn.Parameter(torch.cat((self.weight.detach(), new)))

    def spec(self) -> dict[str, Any]:
        return {"kind": "ids", "n_items": self.n_items, "width": self.width}
