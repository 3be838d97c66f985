"""Where item vectors come from: a frozen text table, an adapter, an ID embedding.

Tokens: 0 is padding, then the dataset's candidates, catalogue-only items, and items added later.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hllm.items.source.whitening import Whitening

TILE = 65_536


class FrozenItemSource(nn.Module):
    """Item vectors (n, d) = adapter(whitened text embedding) + ID embedding.

    An item without text gets one learned vector instead of the adapter's output. Without an
    adapter the text vectors themselves are the item vectors, nothing is learned, and an item
    without text has the zero vector (torch-rechub's HLLM). An item without a training event has a
    zero ID vector: there is nothing to learn it from (protocol.md, "Negatives"), and text alone
    speaks for it.

    n_items       catalogue size; tokens run from 1 to n_items
    trained       bool (n_items + 1,): tokens with a training event
    text          float32 (n_items + 1, r) transformed text vectors, or None for ids alone
    has_text      bool (n_items + 1,)
    d_model       None, and only without an adapter: r
    """

    trained: Tensor
    trained_tokens: Tensor
    trained_rows: Tensor
    text: Tensor
    has_text: Tensor

    def __init__(
        self,
        trained: Tensor,
        d_model: int | None,
        text: Tensor | None = None,
        has_text: Tensor | None = None,
        whitening: Whitening | None = None,
        adapter_hidden: int | None = 512,
        id_embedding: bool = True,
    ) -> None:
        super().__init__()
        n = trained.shape[0]
        if d_model is None:
            assert text is not None and adapter_hidden is None and not id_embedding
            d_model = text.shape[1]
        self.d_model = d_model
        self.register_buffer("trained", trained.clone())
        self.register_buffer("trained_tokens", torch.zeros(0, dtype=torch.long), persistent=False)
        self.register_buffer("trained_rows", torch.zeros(n, dtype=torch.long), persistent=False)
        self.refresh()
        self.whitening = whitening
        self.adapter: nn.Sequential | None = None
        if text is not None:
            assert has_text is not None
            self.register_buffer("text", text)
            self.register_buffer("has_text", has_text)
        if text is not None and adapter_hidden is not None:
            self.adapter = nn.Sequential(
                nn.Linear(text.shape[1], adapter_hidden), nn.GELU(), nn.Linear(adapter_hidden, d_model)
            )
            self.no_text = nn.Parameter(torch.zeros(d_model))
        self.id_embedding: nn.Embedding | None = None
        if id_embedding:
            self.id_embedding = nn.Embedding(n, d_model)
            nn.init.normal_(self.id_embedding.weight, std=0.02)

    @property
    def n_items(self) -> int:
        return self.trained.shape[0] - 1

    def encode(self, tokens: Tensor) -> Tensor:
        """Vectors (n, d) of `tokens` int64 (n,), with gradient."""
        vectors: Tensor | None = None
        if self.adapter is not None:
            vectors = self.adapter(self.text[tokens])
            vectors = torch.where(self.has_text[tokens].unsqueeze(1), vectors, self.no_text.to(vectors.dtype))
        elif self.id_embedding is None:
            vectors = self.text[tokens]
        if self.id_embedding is not None:
            ids = self.id_embedding(tokens) * self.trained[tokens].unsqueeze(1)
            vectors = ids if vectors is None else vectors + ids
        assert vectors is not None
        return vectors

    def tiles(self, tokens: Tensor | None = None, grad: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (tokens (m,), vectors (m, d)) over `tokens`, or over every token from 0 (padding) on."""
        if tokens is None:
            tokens = torch.arange(self.trained.shape[0], device=self.trained.device)
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            for part in tokens.split(TILE):
                yield part, self.encode(part)

    def extend(self, vectors: Tensor, has_text: Tensor) -> None:
        """Append items: raw text `vectors` (m, d_text), transformed by the run's own statistics."""
        m = has_text.shape[0]
        device = self.trained.device
        self.trained = torch.cat((self.trained, torch.zeros(m, dtype=torch.bool, device=device)))
        self.refresh()
        if self.whitening is not None:
            new = self.whitening.transform(vectors.to(device), has_text.to(device))
            self.text = torch.cat((self.text, new))
            self.has_text = torch.cat((self.has_text, has_text.to(device)))
        if self.id_embedding is not None:
            weight = self.id_embedding.weight
            grown = nn.Embedding(weight.shape[0] + m, weight.shape[1], device=device, dtype=weight.dtype)
            grown.weight.data.zero_()
            grown.weight.data[: weight.shape[0]] = weight.data
            self.id_embedding = grown

    def refresh(self) -> None:
        """Derive the list of trained tokens, and each one's row in it, anew from `trained`."""
        self.trained_tokens = self.trained.nonzero().flatten()
        self.trained_rows = torch.zeros(self.trained.shape[0], dtype=torch.long, device=self.trained.device)
        self.trained_rows[self.trained_tokens] = torch.arange(
            len(self.trained_tokens), device=self.trained.device
        )
