"""Several text fields, one vector: each field is read in a text of its own, and the vectors are put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hllm.errors import ConfigError

FUSIONS = ("together", "mean", "learned", "concat")
LEARNED = "learned"


def parse_fusion(name: str, n_fields: int) -> tuple[str, list[float]]:
    """How fields are put together and their weights: ("mean", [3, 1]) of "mean:3,1".

    "together" is one text of all fields, "mean" the (weighted) mean of their vectors, "concat" the vectors, times
    their weights, side by side; "learned" is a mean whose weights are trained with the user model, from vectors side
    by side (items/source/fields_table.py). Without weights all are 1. Raises ConfigError for anything else, for
    weights that are not positive, or not one a field.
    """
    how, _, listed = name.partition(":")
    try:
        weights = [float(part) for part in listed.split(",")] if listed else [1.0] * n_fields
    except ValueError:
        weights = []
    if how not in FUSIONS or (how in ("together", LEARNED) and listed):
        raise ConfigError(f"unknown fusion {name!r}; valid: {', '.join(FUSIONS)}, with weights as mean:3,1")
    if len(weights) != n_fields or not all(0 < w < 1e6 for w in weights):
        raise ConfigError(f"fusion {name!r} needs one positive weight for each of the {n_fields} fields")
    return how, weights


def fuse(
    vectors: Sequence[np.ndarray], has_text: Sequence[np.ndarray], how: str, weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 (n, d) of each field, zero where it has no text, as vectors (n, d) or (n, sum d) of items.

    `has_text` bool (n,) of each field. The mean is over the fields that an item has; an item has text if any of
    its fields has. Returns the vectors float32 and has_text bool (n,). Raises ConfigError for a mean or learned
    weights of vectors whose widths differ.
    """
    any_text = np.logical_or.reduce(has_text)
    scaled = [w * v * has[:, None] for w, v, has in zip(weights, vectors, has_text, strict=True)]
    if how == "concat":
        return np.concatenate(scaled, axis=1).astype(np.float32), any_text
    if len(widths := {v.shape[1] for v in vectors}) > 1:
        listed = ", ".join(f"{width}" for width in sorted(widths))
        raise ConfigError(
            f"fusion {how}: the fields' vectors have {listed} dimensions, and only equal ones can be added up; use "
            "concat, or a model whose vectors are all of one width"
        )
    if how == LEARNED:
        return np.concatenate(scaled, axis=1).astype(np.float32), any_text
    total = sum(w * has.astype(np.float64) for w, has in zip(weights, has_text, strict=True))
    mean = sum(scaled) / np.maximum(total, 1e-12)[:, None]
    return np.asarray(mean, dtype=np.float32), any_text
