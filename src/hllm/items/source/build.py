"""Sources made from a dataset's vectors and a configuration, or rebuilt from their specification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hllm.errors import ArtifactError
from hllm.items.config import ItemsConfig
from hllm.items.source.base import ItemSource
from hllm.items.source.ids import Ids
from hllm.items.source.joined import Concat, Sum
from hllm.items.source.text_table import TextTable
from hllm.items.source.whitening import Whitening


def make_source(
    items: ItemsConfig, d_model: int | None, trained: Tensor, raw: Tensor | None, has_text: Tensor | None
) -> Sum:
    """The source that a configuration asks for, freshly initialised.

    trained   bool (n_items + 1,): tokens with a training event
    raw       float32 (n_items + 1, d_text) text vectors, row = token, or None for ids alone
    has_text  bool (n_items + 1,)

    Whitening is fitted on the items that have text and occur in training. Raises DataError where there are none.
    """
    parts: dict[str, ItemSource] = {}
    if raw is not None:
        assert has_text is not None
        whitening = Whitening.fit(raw[trained & has_text], items.whiten, items.whiten_rank)
        table = whitening.transform(raw, has_text)
        parts["text"] = TextTable(table, has_text, whitening, d_model, items.adapter_hidden)
    if items.id_embedding:
        assert d_model is not None  # config.py: without an adapter there are no ids
        parts["ids"] = Ids(len(trained) - 1, d_model, trained)
    return Sum(parts)


def empty_source(spec: dict[str, Any]) -> ItemSource:
    """A source of the shapes that `spec` tells (`ItemSource.spec`), to load weights into.

    Raises ArtifactError for a kind that this hllm does not know.
    """
    kind = spec.get("kind")
    if kind in ("sum", "concat"):
        parts = {name: empty_source(part) for name, part in spec["parts"].items()}
        return Sum(parts) if kind == "sum" else Concat(parts)
    if kind == "ids":
        return Ids(spec["n_items"], spec["width"])
    if kind == "text_table":
        n = spec["n_items"] + 1
        whitening = None
        if spec["whitening"] is not None:
            dim, rank = spec["whitening"]
            whitening = Whitening(
                torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, rank, dtype=torch.float64)
            )
        return TextTable(
            torch.zeros(n, spec["rank"]),
            torch.zeros(n, dtype=torch.bool),
            whitening,
            spec["width"],
            spec["hidden"],
        )
    raise ArtifactError(
        f"the run's item source is of kind {kind!r}, which this hllm does not know; update hllm"
    )
