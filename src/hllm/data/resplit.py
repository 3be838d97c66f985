"""A dataset under another split than it was prepared with: the same events, other ones held out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hllm.artifacts import digest
from hllm.data.dataset import Dataset
from hllm.data.splits import Packed, SplitOptions, make_split


def with_split(
    data: Dataset, train_mask: np.ndarray, queries: Mapping[str, np.ndarray], options: Mapping[str, Any]
) -> Dataset:
    """`data` with another split, in memory; its fingerprint says so.

    train_mask bool (N,), queries: flat positions int64 of the held-out events by split, as in a
    dataset. `options` describes the split in the dataset's document.
    """
    owner = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    described = json.dumps(dict(options), sort_keys=True)
    meta = {
        **data.meta,
        "fingerprint": digest(data.fingerprint, described, train_mask, *queries.values()),
        "split": dict(options),
        "evaluated_users": {name: len(np.unique(owner[at])) for name, at in queries.items()},
        "targets": {name: len(at) for name, at in queries.items()},
    }
    frames = {name: getattr(data, name) for name in ("interactions", "items", "users")}
    return replace(data, path=None, meta=meta, train_mask=train_mask, queries=dict(queries), frames=frames)


def resplit(data: Dataset, name: str, ratio: tuple[float, float, float] | None, seed: int) -> Dataset:
    """`data` split again by `name`: "leave-one-out", or "user-ratio" with every event a target.

    `seed` shuffles the users of "user-ratio". Raises ConfigError for options that cannot be.
    """
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
    return with_split(data, made.train_mask, queries, made.options)
