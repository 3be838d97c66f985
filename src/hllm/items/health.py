"""Are a catalogue's text vectors fit to learn from: how alike they are, how many directions they use, duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hllm.items.embeddings import ItemEmbeddings
from hllm.items.encoders.kinds import VECTORS
from hllm.items.sound import OUTLYING

NEAR = 0.999  # cosine of centred vectors from which two items count as near-duplicates
_PROBED = 5_000  # items that are compared with all others
_BLOCK = 512
_READ = 100_000  # items that are looked at


@dataclass(frozen=True)
class Health:
    """What `check` found.

    items, without_text, truncated   counts
    identical        items whose vector another item has too (as a rule the same text)
    near_duplicates  share of items with another, not identical, at centred cosine >= .999
    mean_cosine      of two different items' vectors; near 1 they share one direction and need centring
    centred_cosine   mean absolute cosine of two items after centring
    dim              width of the vectors
    effective_rank   exp of the entropy of the variances' shares (Roy and Vetterli, 2007): directions in use
    outlying         vectors more than 10,000 times as long as the median one, beside which nothing can be learned
    brought          whether others made the vectors, so that no option of `hllm embed` changes them
    """

    items: int
    without_text: int
    truncated: int
    identical: int
    near_duplicates: float
    mean_cosine: float
    centred_cosine: float
    dim: int
    effective_rank: float
    outlying: int = 0
    brought: bool = False

    def advice(self) -> list[str]:
        """What to do, a line each; one line that says so where nothing is wrong."""
        there = max(self.items - self.without_text, 1)
        found = []
        if self.outlying:
            found.append(
                f"{self.outlying:,} vectors are more than {OUTLYING:,.0f} times as long as the median one, and "
                "training refuses them: correct these, or leave their items out"
            )
        if self.mean_cosine > 0.5:
            found.append("vectors share one direction: keep whiten=whiten (or center) when training")
        most = min(self.dim, there)
        if self.effective_rank < max(most / 20, 1.5) and most > 2:
            found.append(
                "few directions carry the vectors: others of more dimensions tell items better apart"
                if self.brought
                else "few directions carry the vectors: another layer (--pooling mean@-2) or a model made for "
                "embeddings (--item-llm e5-small --pooling auto) may tell items better apart"
            )
        if self.identical > there / 20:
            found.append(
                "many items have the same vector: make them of more text, or train with id_embedding=true"
                if self.brought
                else "many items have the same text: add fields (--fields), or train with id_embedding=true"
            )
        if self.near_duplicates > 0.05:
            found.append(
                "many items are nearly alike: vectors of more text, or of another model, tell them apart"
                if self.brought
                else 'many items are nearly alike: more fields, or no prompt (--prompt ""), tells them apart'
            )
        if self.truncated > there / 20:
            found.append("many texts are cut: a larger --max-tokens, or --long-text bm25")
        if self.without_text > self.items / 20:
            what = "vector" if self.brought else "text"
            found.append(
                f"many items have no {what}: they share one learned vector, so keep id_embedding=true"
            )
        return found or ["nothing stands out"]


def check(embeddings: ItemEmbeddings) -> Health:
    """Measure item embeddings: 100,000 items, evenly chosen where there are more, 5,000 of them against all these."""
    place = np.flatnonzero(embeddings.has_text)
    rows = embeddings.vectors[_evenly(place, _READ)]
    unit, norms = _centred(rows), np.linalg.norm(rows.astype(np.float64), axis=1)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    probed = _evenly(np.arange(len(unit)), _PROBED)
    near, total, pairs = 0, 0.0, 0
    for first in range(0, len(probed), _BLOCK):
        some = probed[first : first + _BLOCK]
        cosine = unit[some] @ unit.T
        cosine[np.arange(len(some)), some] = 0.0
        total, pairs = total + float(np.abs(cosine).sum()), pairs + cosine.size - len(some)
        alike = zip(*np.nonzero(cosine >= NEAR), strict=True)
        near += len({i for i, j in alike if (rows[some[i]] != rows[j]).any()})
    return Health(
        items=len(embeddings.has_text) - 1,
        without_text=int((~embeddings.has_text[1:]).sum()),
        truncated=int(embeddings.stats.get("truncated", 0)),
        identical=int(counts[counts > 1].sum()),
        near_duplicates=near / max(len(probed), 1),
        mean_cosine=embeddings.mean_cosine,
        centred_cosine=total / max(pairs, 1),
        dim=rows.shape[1],
        effective_rank=effective_rank(rows),
        outlying=int((norms > OUTLYING * np.median(norms)).sum()) if len(norms) else 0,
        brought=str(embeddings.spec.get("model", "")).startswith(VECTORS),
    )


def effective_rank(rows: np.ndarray) -> float:
    """exp of the entropy of the shares of variance of rows float (n, d) along their principal axes; 0 without any."""
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64) if len(rows) else np.zeros((1, 1))
    variances = np.linalg.eigvalsh(centred.T @ centred).clip(min=0.0)
    if not variances.sum() > 0:
        return 0.0
    shares = variances / variances.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def neighbours(embeddings: ItemEmbeddings, tokens: Sequence[int], k: int) -> list[list[int]]:
    """For each of `tokens`, items with text, the `k` tokens nearest by the cosine of centred vectors."""
    place = np.flatnonzero(embeddings.has_text)
    place = np.union1d(_evenly(place, _READ), np.asarray(tokens, dtype=np.int64))
    unit = _centred(embeddings.vectors[place])
    found = []
    for token in tokens:
        cosine = unit @ unit[int(np.searchsorted(place, token))]
        cosine[place == token] = -np.inf
        found.append(place[np.argsort(-cosine, kind="stable")[: min(k, len(place) - 1)]].tolist())
    return found


def _evenly(values: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of `values` (m,), from the first to the last."""
    return values[np.linspace(0, max(len(values) - 1, 0), min(len(values), n)).astype(int)]


def _centred(rows: np.ndarray) -> np.ndarray:
    """Rows float32 (n, d) less their mean, of unit length."""
    centred = rows - rows.mean(0) if len(rows) else rows
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
