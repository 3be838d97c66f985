"""Vectors that others made, brought into a dataset's store: matched to its items by id, exactly."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import artifacts, hardware
from hllm.arguments import path, text
from hllm.data.tables.columns import canonical_ids
from hllm.data.tables.identifiers import agreeing_ids, sample
from hllm.errors import ConfigError, DataError
from hllm.items.embeddings import ItemEmbeddings, of_store
from hllm.items.encoders.names import VECTORS, vectors_name
from hllm.items.foreign import Foreign, encode_foreign, read_foreign, take_foreign
from hllm.items.sound import LARGEST
from hllm.items.store.request import Request, check_options, index_fingerprint
from hllm.items.store.shards import (
    Shard,
    Store,
    key_array,
    locked,
    read_index,
    spec_key,
    text_key,
    write_index,
)
from hllm.settings import shown
from hllm.text.template import choose_fields

if TYPE_CHECKING:
    import polars as pl

    from hllm.data.dataset import Dataset

BLOCK = 16_384  # rows written at a time, of which many are one shard


def bring_in(
    dataset: Dataset,
    model: Any,
    vectors: Any,
    ids: Any,
    name: str | None,
    prompt: str | None,
    text_fields: Sequence[str] | None,
    max_tokens: int,
    options: Mapping[str, str | None],
) -> ItemEmbeddings:
    """Vectors of a file, an array or a frame, or of a `model` in memory that encodes the items' texts: see `embed`."""
    name = None if name is None else text("name", name)
    if vectors is None:
        if not callable(getattr(model, "encode", None)):
            raise ConfigError(
                f"item_llm={shown(model)}: must be a name, or a model with encode(list of texts)"
            )
        chosen = {option: value for option, value in options.items() if value is not None}
        fields = choose_fields(check_options(chosen, text_fields), dataset.meta.get("text_fields", []))
        request = Request(VECTORS, "none", prompt or "", fields, None, max_tokens, chosen)
        foreign = encode_foreign(model, request.render(dataset.items), dataset.item_ids)
        return bring(dataset, foreign, vectors_name(name or type(model).__name__))
    if name is not None:
        vectors_name(name)
    if isinstance(vectors, str | os.PathLike):
        file = path("vectors", vectors)
        foreign = read_foreign(file, None if ids is None else path("ids", ids))
        stem = re.sub(r"[^\w.+-]+", "-", file.stem).strip("-.") or "own"
        return bring(dataset, foreign, vectors_name(name or stem))
    return bring(dataset, take_foreign(vectors, ids), vectors_name(name or "own"))


def bring(dataset: Dataset, foreign: Foreign, name: str) -> ItemEmbeddings:
    """Store the vectors of the dataset's items under `vectors:NAME`, and return them.

    stats: `encoded` (0), `brought` (items with a vector), `missing` (items without), `surplus` (vectors of no item).
    An item without a vector counts as one without text. Raises DataError where the ids' types cannot agree (naming
    both), no id is an item's, an id occurs twice, a vector is not finite, or all are the same.
    """
    rows, surplus = match(dataset, foreign)
    has = rows >= 0
    _check_finite(foreign, rows[has], [i for i, there in zip(dataset.item_ids, has, strict=True) if there])
    half = foreign.vectors.dtype == np.float16
    keys = [item_key(item) if there else None for item, there in zip(dataset.item_ids, has, strict=True)]
    spec: dict[str, Any] = {
        "model": VECTORS + name,
        "source": foreign.source,
        "revision": None,
        "weights": _digest(foreign.vectors, rows[has], [key for key in keys if key]),
        "prompt": "",
        "fields": [],
        "pooling": "none",
        "precision": "fp16" if half else "fp32",
        "max_tokens": 0,
        "catalogue": None,
    }
    spec = {"key": spec_key(spec), **spec, "made_with": {"versions": hardware.describe_versions()}}
    store = Store(dataset.embeddings_dir / spec["key"])
    _write(store, foreign, rows[has], key_array([key for key in keys if key]), half)
    store.write_spec({**spec, "dim": foreign.vectors.shape[1]})
    write_index(store.folder, index_fingerprint(dataset, ()), keys)
    result = of_store(dataset, spec, store, *read_index(store.folder, index_fingerprint(dataset, ())))
    n, missing = int(has.sum()), int((~has).sum())
    result.stats.update(encoded=0, reused=0, encode_seconds=0.0, seconds=0.0)
    result.stats.update(brought=n, missing=missing, surplus=surplus)
    if missing * 2 > len(has):
        warnings.warn(f"only {n:,} of {len(has):,} items have a vector in {foreign.source}", stacklevel=3)
    return result


def match(dataset: Dataset, foreign: Foreign) -> tuple[np.ndarray, int]:
    """Row int64 (n_catalogue,) of `foreign` of each item, -1 for none; and the number of rows of no item."""
    import polars as pl

    ours = canonical_ids(column(dataset.item_ids), "items")
    theirs = canonical_ids(foreign.ids, foreign.source)
    names = ("items", foreign.source)
    ours, theirs = agreeing_ids([ours, theirs], names, {foreign.source} if foreign.untyped else ())
    if theirs.n_unique() < len(theirs):
        twice = theirs.filter(theirs.is_duplicated())
        raise DataError(
            f"{foreign.source} has {twice.n_unique():,} ids more than once, the first is {twice[0]!r}; "
            "one vector an item is needed"
        )
    places = pl.DataFrame({"id": theirs, "row": np.arange(len(theirs))})
    rows = pl.DataFrame({"id": ours}).join(places, on="id", how="left", maintain_order="left")["row"]
    found = rows.fill_null(-1).to_numpy().astype(np.int64)
    if not (found >= 0).any():
        raise DataError(
            f"no id in {foreign.source} is an item's ({sample(theirs)}, {theirs.dtype} there; {sample(ours)}, "
            f"{ours.dtype} in the dataset); both must use the same identifiers"
        )
    return found, int(len(theirs) - (found >= 0).sum())


def column(ids: Sequence[Any]) -> pl.Series:
    import polars as pl

    return pl.Series("item_id", list(ids))


def item_key(item_id: Any) -> bytes:
    """Key of a vector that belongs to an item's id, not to a text: 7 and "7" are two."""
    return text_key(f"\x00item {'number' if isinstance(item_id, int) else 'text'} {item_id}")


def _check_finite(foreign: Foreign, rows: np.ndarray, ids: Sequence[Any]) -> None:
    same = len(rows) > 1
    for first in range(0, len(rows), BLOCK):
        with np.errstate(over="ignore"):  # infinity, which is told below
            part = np.asarray(foreign.vectors[rows[first : first + BLOCK]], dtype=np.float32)
        same = same and bool((part == foreign.vectors[rows[0]]).all())
        usable = np.isfinite(part) & (np.abs(part) <= LARGEST)
        if (bad := np.flatnonzero(~usable.all(1))).size:
            raise DataError(
                f"the vector of item {ids[first + int(bad[0])]!r} in {foreign.source} holds NaN or a number beyond "
                f"{LARGEST:.0e}; correct it, or leave the item out"
            )
    if same:
        raise DataError(
            f"all {len(rows):,} vectors in {foreign.source} are the same, so no item can be told from another; make "
            "them again"
        )


def _digest(vectors: np.ndarray, rows: np.ndarray, keys: Sequence[bytes]) -> str:
    """sha256 over the items' keys and vectors, in the order of the keys: the order of a file does not matter."""
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__))
    parts = [
        artifacts.digest(np.ascontiguousarray(vectors[rows[order[i : i + BLOCK]]]))
        for i in range(0, len(order), BLOCK)
    ]
    return artifacts.digest(b"".join(keys[i] for i in order), *parts)


def _write(store: Store, foreign: Foreign, rows: np.ndarray, keys: np.ndarray, half: bool) -> None:
    """Write what is missing, some rows a shard."""
    with locked(store.folder):
        store.refresh()
        store.drop_damaged()
        missing = np.flatnonzero(store.find(keys) < 0)
        size = max(1, (64 << 20) // max(foreign.vectors[:1].nbytes, 1))
        for first in range(0, len(missing), size):
            some = missing[first : first + size]
            vectors = np.asarray(foreign.vectors[rows[some]], dtype=np.float16 if half else np.float32)
            order = np.lexsort(keys[some].T[::-1])
            store.append(Shard(vectors[order], keys[some][order], np.zeros(len(some), dtype=bool)))
