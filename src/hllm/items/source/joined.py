"""Sources joined into one: their vectors added, or laid side by side."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hllm.items.source.base import TILE, ItemSource, Lease


class Joined(ItemSource):
    """Parts by name ("text", "ids", ...), each with a lease of its own."""

    kind: str

    def __init__(self, parts: Mapping[str, ItemSource]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.static = all(part.static for part in parts.values())

    @abstractmethod
    def join(self, vectors: Sequence[Tensor]) -> Tensor:
        """The parts' vectors (n, width of the part) to one (n, width)."""

    @abstractmethod
    def split(self, grad: Tensor) -> Sequence[Tensor]:
        """The gradient at the joined vectors, for each part."""

    @property
    def sources(self) -> list[ItemSource]:
        """The parts in their order."""
        return list(self.parts.values())  # type: ignore[arg-type]

    @property
    def n_items(self) -> int:
        return self.sources[0].n_items

    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (n, width) of `tokens` int64 (n,)."""
        return self.join([part.encode(tokens) for part in self.sources])

    def every(self) -> Tensor:
        return self.sources[0].every() if len(self.parts) == 1 else super().every()

    @torch.no_grad()
    def tiles(self) -> Iterator[Tensor]:
        """Vectors of every token, each part's made in its own way."""
        for vectors in zip(*(part.every().split(TILE) for part in self.sources), strict=True):
            yield self.join(vectors)

    def lease(self, tokens: Tensor) -> Lease:
        leases = [part.lease(tokens) for part in self.sources]
        vectors = self.join([lease.vectors.detach() for lease in leases])
        if not any(lease.spend for lease in leases):
            return Lease(vectors)
        if len(leases) == 1:
            return leases[0]

        def spend(grad: Tensor) -> None:
            for lease, share in zip(leases, self.split(grad), strict=True):
                if lease.spend is not None:
                    lease.spend(share.to(lease.vectors.dtype))

        return Lease(vectors.requires_grad_(), spend)

    def extend(self, text: Tensor | None, has_text: Tensor) -> None:
        for part in self.sources:
            part.extend(text, has_text)

    def spec(self) -> dict[str, Any]:
        parts = {name: part.spec() for name, part in zip(self.parts, self.sources, strict=True)}
        return {"kind": self.kind, "parts": parts}


class Sum(Joined):
    """The parts' vectors added; all of one width."""

    kind = "sum"

    def __init__(self, parts: Mapping[str, ItemSource]) -> None:
        super().__init__(parts)
        widths = {part.width for part in parts.values()}
        if len(widths) != 1:
            raise ValueError(f"vectors of widths {sorted(widths)} cannot be added; use Concat")
        self.width = widths.pop()

    def join(self, vectors: Sequence[Tensor]) -> Tensor:
        total = vectors[0]
        for more in vectors[1:]:
            total = total + more
        return total

    def split(self, grad: Tensor) -> Sequence[Tensor]:
        return [grad] * len(self.parts)


class Concat(Joined):
    """The parts' vectors side by side."""

    kind = "concat"

    def __init__(self, parts: Mapping[str, ItemSource]) -> None:
        super().__init__(parts)
        self.width = sum(part.width for part in parts.values())

    def join(self, vectors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(vectors), dim=1)

    def split(self, grad: Tensor) -> Sequence[Tensor]:
        return grad.split([part.width for part in self.sources], dim=1)
