"""Where item vectors come from, and where their gradients go: the contract between items and user models.

A step asks a source for the vectors of the items that it needs (`lease`), trains on them as a leaf, and gives
the gradient at the leaf back (`Lease.backward`). So the user half of a step never touches the source, and a
source may be a table, a language model, or several of both. Tokens: 0 is padding, then the dataset's candidates,
catalogue-only items, and items added later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TILE = 65_536  # items encoded at once where every item is


@dataclass
class Lease:
    """Vectors lent to one step.

    vectors  (M, width), float32 or wider: a leaf, with gradient unless nothing in the source is trained
    """

    vectors: Tensor
    spend: Callable[[Tensor], None] | None = None

    def backward(self) -> None:
        """Spend `vectors.grad`: the gradients of the source's parameters grow by what it implies."""
        if self.spend is not None and self.vectors.grad is not None:
            self.spend(self.vectors.grad)


class ItemSource(nn.Module, ABC):
    """Item vectors (n, width) of tokens int64 (n,).

    width   of a vector
    static  whether `lease` has fixed shapes and no host decisions, so that a whole step can be captured
    """

    width: int
    static: bool = True

    @property
    @abstractmethod
    def n_items(self) -> int:
        """Size of the catalogue; tokens run from 1 to n_items."""

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (n, width) of `tokens` int64 (n,), with gradient."""

    @abstractmethod
    def extend(self, text: Tensor | None, has_text: Tensor) -> None:
        """Append m items: raw text vectors (m, d_text), or None for a source without text; has_text bool (m,)."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """What `items.source.build.empty_source` rebuilds the source from, before weights are loaded."""

    def lease(self, tokens: Tensor) -> Lease:
        """The vectors of distinct `tokens` int64 (M,) for one step: one plain graph."""
        plain = self.encode(tokens)
        wide = plain.detach().to(torch.promote_types(plain.dtype, torch.float32))
        if not plain.requires_grad:
            return Lease(wide)
        return Lease(wide.requires_grad_(), lambda grad: plain.backward(grad.to(plain.dtype)))

    @torch.no_grad()
    def every(self) -> Tensor:
        """Vectors (n_items + 1, width) of every token from 0 (padding) on, without gradient.

        They may be the source's own weights: a table to read, and only until these change.
        """
        return laid_out(self.tiles(), self.n_items + 1)

    @torch.no_grad()
    def tiles(self) -> Iterator[Tensor]:
        """Vectors of every token from 0 (padding) on, in order, some (m, width) at a time, without gradient."""
        device = next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        for tokens in torch.arange(self.n_items + 1, device=device).split(TILE):
            yield self.encode(tokens)


def laid_out(tiles: Iterable[Tensor], n: int) -> Tensor:
    """Tiles (m, d) as one tensor (n, d); unlike `torch.cat` it never holds them all twice."""
    whole, first = None, 0
    for tile in tiles:
        if whole is None:
            whole = tile.new_empty(n, *tile.shape[1:])
        whole[first : first + len(tile)] = tile
        first += len(tile)
    assert whole is not None and first == n
    return whole
