"""A dataset under another split than it was prepared with: the same events, other ones held out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hllm.artifacts import digest
from hllm.data.dataset import Dataset
from hllm.data.splits import Packed, SplitOptions, make_split


@dataclass(frozen=True)
class Split:
    """train_mask bool (N,), and flat positions int64 of the held-out events, as in a dataset."""

    train_mask: np.ndarray
    queries: dict[str, np.ndarray]


def with_split(data: Dataset, split: Split, options: Mapping[str, Any]) -> Dataset:
    """`data` with another split, in memory; its fingerprint says so."""
    owner = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    fingerprint = digest(
        data.fingerprint, json.dumps(dict(options), sort_keys=True), split.train_mask, *split.queries.values()
    )
    meta = {
        **data.meta,
        "fingerprint": fingerprint,
        "split": dict(options),
        "evaluated_users": {name: len(np.unique(owner[at])) for name, at in split.queries.items()},
        "targets": {name: len(at) for name, at in split.queries.items()},
    }
    frames = {name: getattr(data, name) for name in ("interactions", "items", "users")}
    return replace(
        data, path=None, meta=meta, train_mask=split.train_mask, queries=dict(split.queries), frames=frames
    )


def resplit(data: Dataset, name: str, ratio: tuple[float, float, float] | None, seed: int) -> Dataset:
    """`data` split again by `name` ("leave-one-out", "user-ratio" with every event a target)."""
    if name == "user-ratio":
        options = SplitOptions(name, seed, ratio=ratio, targets="all")
    else:
        options = SplitOptions(name, ratio=ratio)
    packed = Packed(
        np.asarray(data.tokens),
        np.asarray(data.times),
        np.asarray(data.offsets),
        data.n_candidates,
        data.meta["time_unit"],
    )
    made = make_split(packed, options)
    queries = {key: at.astype(np.int64) for key, at in made.queries.items()}
    return with_split(data, Split(made.train_mask, queries), made.options)
