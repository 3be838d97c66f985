"""Item vectors as an index of faiss, which searches by inner product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hllm.artifacts import atomic
from hllm.export.check import Search


def write_index(
    path: Path, vectors: np.ndarray, rows: np.ndarray, quantize: str | None = None
) -> tuple[Any, np.ndarray]:
    """Write an index of vectors float32 (c, w) under the numbers `rows` int64 (c,); returns it as read again.

    Every vector is looked at. Exact, or of 8-bit integers with bounds for each component; with it come the vectors
    float32 (c, w) that it holds.
    """
    import faiss

    width = vectors.shape[1]
    flat = (
        faiss.IndexFlatIP(width)
        if quantize is None
        else faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    )
    flat.train(vectors)
    index = faiss.IndexIDMap(flat)
    index.add_with_ids(vectors, rows)
    with atomic(path) as temporary:
        faiss.write_index(index, str(temporary))
    read: Any = faiss.read_index(str(path))
    return read, faiss.downcast_index(read.index).reconstruct_n(0, len(rows))


def search_index(index: Any) -> Search:
    """How an index finds the rows of the best items."""

    def search(queries: np.ndarray, m: int) -> np.ndarray:
        return np.asarray(index.search(np.ascontiguousarray(queries), m)[1])

    return search
