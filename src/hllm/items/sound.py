"""Item vectors that no model can be trained on, found before anything is trained, and named by item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hllm.errors import DataError

LARGEST = 1e15  # of a number: squares of a row still add up in float32
OUTLYING = 1e4  # norms of the median item: whitening gives one such item most of what there is of variance
ROWS = 65_536  # at a time


def check_vectors(vectors: np.ndarray, has_text: np.ndarray, n: int, name: Callable[[int], Any]) -> None:
    """Raise DataError, naming an item, for rows that are not finite, or larger than any model's are.

    vectors   float (n + 1, d), row = token
    has_text  bool (n + 1,): rows that are vectors
    n         number of items
    name      identifier of a token: asked for only where something is wrong, since tables are slow to read
    """
    if vectors.ndim != 2 or len(vectors) != n + 1 or has_text.shape != (n + 1,):
        raise DataError(
            f"the item embeddings have the shape {vectors.shape}, and has_text {has_text.shape}, where the dataset has "
            f"{n:,} items ({n + 1:,} rows, the first one for padding); make them of this dataset: hllm embed"
        )
    norms, sizes = np.zeros(n + 1), np.zeros(n + 1)
    for first in range(0, n + 1, ROWS):
        rows = np.abs(vectors[first : first + ROWS].astype(np.float64))
        sizes[first : first + ROWS] = rows.max(1, initial=0.0)
        with np.errstate(over="ignore"):
            norms[first : first + ROWS] = np.sqrt(np.square(rows).sum(1))
    typical = float(np.median(norms[has_text])) if has_text.any() else 0.0
    outlying = norms > OUTLYING * typical if np.isfinite(typical) and typical > 0 else np.zeros(n + 1, bool)
    for wrong, what in (
        (~np.isfinite(sizes), "holds NaN or infinity"),
        (sizes > LARGEST, f"holds numbers beyond {LARGEST:.0e}"),
        (outlying, f"is more than {OUTLYING:,.0f} times as long as the median item's"),
    ):
        if (found := np.flatnonzero(wrong & has_text)).size:
            more = f" (and those of {len(found) - 1:,} more items)" if len(found) > 1 else ""
            raise DataError(
                f"the vector of item {name(int(found[0]))!r}{more} {what}, so nothing can be learned beside it; "
                "embed again with another --precision or model, or correct the item's text"
            )
