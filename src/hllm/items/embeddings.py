"""Raw item vectors of one catalogue, as they are handed on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.errors import ArtifactError
from hllm.items.store.mapped import StoredVectors
from hllm.items.store.shards import Store, read_spec

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

RESIDENT = 2 << 30  # bytes of vectors that are read into memory at once
SAMPLED = 1_000_000


@dataclass(frozen=True)
class ItemEmbeddings:
    """Raw item vectors of one catalogue.

    vectors   float32 (n_catalogue + 1, d), row = token; row 0 and rows without text are zero. More than 2 GiB
              are a `StoredVectors`, which reads from the store what is indexed
    has_text  bool (n_catalogue + 1,)
    spec      model, source, revision, weights, prompt, fields, pooling, precision, max_tokens, dim, key
    stats     of the call that made them: `encoded`, `reused` (distinct texts), `truncated`,
              `without_text` (items), `encode_seconds` (without loading the model), `seconds`, `folder`
    """

    vectors: np.ndarray
    has_text: np.ndarray
    spec: dict[str, Any]
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def mean_cosine(self) -> float:
        """Mean cosine between two different items' vectors: near 1 means that they need centring.

        Of more than a million items an even sample counts.
        """
        total, place = np.zeros(self.vectors.shape[1]), np.flatnonzero(self.has_text)
        place = place[np.linspace(0, len(place) - 1, min(len(place), SAMPLED)).astype(int)]
        for some in np.array_split(place, -(-len(place) // 65_536) or 1):
            rows = self.vectors[some].astype(np.float64)
            total += (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)).sum(0)
        n = len(place)
        return float((np.square(total).sum() - n) / (n * (n - 1))) if n > 1 else 1.0


def of_store(
    dataset: Dataset, spec: dict[str, Any], store: Store, keys: np.ndarray, has_text: np.ndarray
) -> ItemEmbeddings:
    """The vectors of a catalogue whose token i + 1 has the text with key `keys[i]`, if it has one.

    keys uint8 (n, 16); has_text bool (n,)
    """
    places = np.full(len(keys) + 1, -1, dtype=np.int64)  # row = token
    has_text = np.concatenate(([False], has_text))
    places[has_text] = store.find(keys[has_text[1:]])
    lost = int((places[has_text] < 0).sum())
    if len(keys) != dataset.n_catalogue or lost:
        damaged = f", {len(store.damaged)} files are damaged" if store.damaged else ""
        raise ArtifactError(
            f"embeddings in {store.folder} do not cover the dataset's {dataset.n_catalogue:,} items ({lost:,} "
            f"are missing{damaged}); run `hllm embed` again with the same options: it encodes only these"
        )
    spec = {**(read_spec(store.folder) or spec), "dim": store.dim}
    stored = StoredVectors(store.read, places, store.dim or 0)
    vectors: Any = stored if 4 * stored.size > RESIDENT else stored[:]
    stats = {
        "truncated": int(store.truncated(places[has_text]).sum()),
        "without_text": int((~has_text[1:]).sum()),
        "folder": str(store.folder),
    }
    return ItemEmbeddings(vectors, has_text, spec, stats)
