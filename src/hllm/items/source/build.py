"""Sources made from a dataset's vectors and a configuration, or rebuilt from their specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hllm.errors import ArtifactError
from hllm.items.config import ItemsConfig
from hllm.items.source.base import ItemSource
from hllm.items.source.fields_table import FieldsTable, fit_fields, has_fields
from hllm.items.source.ids import Ids
from hllm.items.source.joined import Concat, Sum
from hllm.items.source.text_table import TextTable
from hllm.items.source.whitening import Whitening
from hllm.ranks import ALONE
from hllm.text.fusion import LEARNED

if TYPE_CHECKING:
    from hllm.items.source.live import LiveText


def make_source(
    items: ItemsConfig,
    d_model: int | None,
    trained: Tensor,
    raw: Tensor | None,
    has_text: Tensor | None,
    live: Callable[[], ItemSource] | None = None,
    fields: int = 1,
) -> Sum:
    """The source that a configuration asks for, freshly initialised.

    trained   bool (n_items + 1,): tokens with a training event
    raw       float32 (n_items + 1, d_text) text vectors, row = token, or None for ids alone
    has_text  bool (n_items + 1,)
    live      makes the text part in the frozen table's place (live_build.py's `make_live`)
    fields    vectors side by side in a row of `raw`, whose weights are learned (fusion "learned")

    Whitening is fitted on the items that have text and occur in training. Raises DataError where there are none.
    """
    parts: dict[str, ItemSource] = {}
    if live is not None:
        parts["text"] = live()
    elif raw is not None:
        assert has_text is not None
        parts["text"] = _text_part(items, d_model, trained, raw, has_text, fields)
    if items.id_embedding:
        assert d_model is not None  # config.py: without an adapter there are no ids
        parts["ids"] = Ids(len(trained) - 1, d_model, trained)
    return Sum(parts)


def _text_part(
    items: ItemsConfig, d_model: int | None, trained: Tensor, raw: Tensor, has_text: Tensor, fields: int
) -> TextTable:
    if items.fusion == LEARNED:
        has_field = has_fields(raw, fields)
        whitening = fit_fields(raw, has_field, trained, items.whiten, items.whiten_rank)
        table = whitening.transform(raw, has_text)
        return FieldsTable(table, has_field, whitening, d_model, items.adapter_hidden)
    whitening = Whitening.fit(raw[trained & has_text], items.whiten, items.whiten_rank)
    table = whitening.transform(raw, has_text)
    return TextTable(table, has_text, whitening, d_model, items.adapter_hidden)


def settle(source: ItemSource) -> LiveText | None:
    """Put the frozen table of a live part's vectors in its place; returns the live part, None if there is none."""
    from hllm.items.source.live import LiveText

    if isinstance(source, Sum):
        for name, part in source.parts.items():
            if isinstance(part, LiveText):
                source.parts[name] = part.settled()
                part.ranks, part.sharded, part.backward_by = ALONE, False, None
                source.static = all(p.static for p in source.sources)
                return part
    return None


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
    if kind in ("text_table", "fields_table"):
        n = spec["n_items"] + 1
        whitening = None
        if spec["whitening"] is not None:
            dim, rank = spec["whitening"]
            whitening = Whitening(
                torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, rank, dtype=torch.float64)
            )
        shape, table = (n, spec["fields"]) if kind == "fields_table" else (n,), torch.zeros(n, spec["rank"])
        there = torch.zeros(shape, dtype=torch.bool)
        make = FieldsTable if kind == "fields_table" else TextTable
        return make(table, there, whitening, spec["width"], spec["hidden"])
    if kind == "live_text":
        from hllm.items.source.live_build import empty_live

        return empty_live(spec)
    raise ArtifactError(
        f"the run's item source is of kind {kind!r}, which this hllm does not know; update hllm"
    )
