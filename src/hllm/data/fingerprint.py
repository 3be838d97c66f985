"""The identity of a dataset: a digest of what its events, split, items and users are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hllm.artifacts import digest
from hllm.data.tables.schema import ITEM_ID, USER_ID

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

SLICE = 50_000  # rows of text hashed at a time
IDENTITY = ("split", "ties", "filters", "time_unit")


def fingerprints(
    frames: Mapping[str, pl.DataFrame],
    text_fields: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Identity of the whole dataset, of the items alone (what embeddings depend on), and of other columns."""
    items = frames["items"]
    own = items_fingerprint(items, text_fields)
    others = [c for c in items.columns if c != ITEM_ID and c not in text_fields]
    return {
        "fingerprint": dataset_fingerprint(own, frames["users"][USER_ID], identity, arrays),
        "items_fingerprint": own,
        # Embeddings may be asked for of these, too.
        "column_digests": {c: _digest_column(items[c]) for c in others},
    }


def items_fingerprint(items: pl.DataFrame, text_fields: Sequence[str]) -> str:
    """Identity of item ids and texts, in token order."""
    texts = [_digest_column(items[c]) for c in text_fields]
    return digest("items", _digest_column(items[ITEM_ID]), json.dumps(list(text_fields)), *texts)


def dataset_fingerprint(
    items: str, user_ids: pl.Series, identity: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> str:
    """Identity of events and split; `items` is the items' own, `identity` holds what IDENTITY names."""
    # The seed shows in the arrays where it matters; elsewhere it must not change the identity.
    split = {k: v for k, v in identity["split"].items() if k != "seed"}
    chosen = {**{name: identity[name] for name in IDENTITY}, "split": split}
    return digest(
        "dataset",
        items,
        _digest_column(user_ids),
        json.dumps(chosen, sort_keys=True),
        *(part for key, array in sorted(arrays.items()) for part in (key, array)),
    )


def _digest_column(values: pl.Series) -> str:
    """Digest of a column's values; 7, "7" and null all differ."""
    parts = (json.dumps(values.slice(i, SLICE).to_list()) for i in range(0, len(values), SLICE))
    return digest(*(digest(part) for part in parts))
