"""Frozen vectors of several text fields, each read apart, combined by weights that are trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hllm.items.source.text_table import TextTable
from hllm.items.source.whitening import Whitening


class FieldsTable(TextTable):
    """adapter(weighted mean of the whitened vectors of the fields that an item has).

    The weights are the softmax, over these fields, of one trained number a field; they start equal.

    table      float32 (n_items + 1, F r) whitened vectors of F fields side by side, row = token
    has_field  bool (n_items + 1, F)
    """

    has_field: Tensor

    def __init__(
        self,
        table: Tensor,
        has_field: Tensor,
        whitening: Whitening | None = None,
        width: int | None = None,
        hidden: int | None = None,
    ) -> None:
        fields = has_field.shape[1]
        super().__init__(table, has_field.any(1), whitening, width, hidden, table.shape[1] // fields)
        self.register_buffer("has_field", has_field)
        self.field_weights = nn.Parameter(torch.zeros(fields))

    def rows(self, tokens: Tensor) -> Tensor:
        """Combined vectors (n, r) of `tokens` int64 (n,)."""
        has = self.has_field[tokens]  # (n, F)
        shares = (self.field_weights - self.field_weights.max()).exp() * has
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
        vectors = self.table[tokens].view(len(tokens), has.shape[1], -1)  # (n, F, r)
        return (vectors * shares.unsqueeze(2).to(vectors.dtype)).sum(1)

    def extend(self, text: Tensor | None, has_text: Tensor) -> None:
        """Append items, of which `text` (m, F d) holds each field's vector, zeros for one that is not there."""
        super().extend(text, has_text)
        assert text is not None
        new = has_fields(text, self.has_field.shape[1]).to(self.has_field.device)
        self.has_field = torch.cat((self.has_field, new))

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "kind": "fields_table", "fields": self.has_field.shape[1]}


def has_fields(raw: Tensor, fields: int) -> Tensor:
    """bool (n, F): which of the F vectors side by side in `raw` (n, F d) are there; an absent one is zero."""
    return raw.view(len(raw), fields, -1).any(2)


def fit_fields(raw: Tensor, has_field: Tensor, used: Tensor, mode: str, rank: int) -> Whitening:
    """One whitening of F vectors side by side that whitens each apart, to the same rank.

    raw (n, F d); has_field bool (n, F); used bool (n,): items that the statistics are of. A field of fewer usable
    directions than another has zeros in the rest. DataError where a field has no used item.
    """
    fields = has_field.shape[1]
    parts = [
        Whitening.fit(part[used & has], mode, rank)
        for part, has in zip(raw.chunk(fields, dim=1), has_field.T, strict=True)
    ]
    widest = max(part.basis.shape[1] for part in parts)
    bases = [nn.functional.pad(part.basis, (0, widest - part.basis.shape[1])) for part in parts]
    return Whitening(torch.cat([part.mean for part in parts]), torch.block_diag(*bases))
