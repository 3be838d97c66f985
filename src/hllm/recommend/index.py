"""An approximate index of item vectors, kept in the run, and how much of the exact lists it finds.

A graph over the vectors is walked towards the query instead of scoring every item (HNSW: Malkov and Yashunin, 2016,
arXiv:1603.09320), by usearch, on vectors of 8-bit integers; what it finds is scored exactly, and the best of it taken.

RUN/index/index.json      what it is of: the run's weights, by digest; and the digest of the graph
RUN/index/items.usearch   the graph, whose keys are tokens
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hllm.artifacts import check_manifest, publish, read_document
from hllm.data.batches.queries import Queries, last_queries, query_batch, query_parts
from hllm.errors import ArtifactError, ConfigError
from hllm.evaluate.best import TopK
from hllm.evaluate.candidates import Candidates
from hllm.evaluate.evaluation import device_of

if TYPE_CHECKING:
    from hllm.recommend.session import Session

LINKS, BUILD = 16, 128  # links of an item in the graph, and candidates looked at while it is made
# Candidates that a search looks at at least, and items scored exactly for each one wanted: .99 of the exact first ten
# among a million items of width 256 (benchmarks/index.py).
EFFORT, REFINE = 768, 10
USERS, ROUNDS = 1000, 3
BLOCK = 50_000  # items added between two signs of progress
FOLDER, MARKER, GRAPH = "index", "index.json", "items.usearch"
FORMAT = "hllm-index"


@dataclass(frozen=True)
class ItemIndex:
    """The graph, and the scored vectors float32 (n + 1, w) by token that its finds are ranked by."""

    graph: Any
    scored: Tensor
    effort: int = EFFORT

    def __len__(self) -> int:
        return len(self.graph)

    def near(self, queries: Tensor, m: int) -> np.ndarray:
        """Tokens int64 (U, m) of items near each of queries float32 (U, w); 0 where fewer are found."""
        self.graph.expansion_search = max(self.effort, m)
        asked = _components(queries.float().cpu().numpy())
        found = self.graph.search(asked if len(asked) > 1 else asked[0], m)
        tokens = np.asarray(found.keys).astype(np.int64).reshape(len(asked), -1)
        counts = np.atleast_1d(getattr(found, "counts", tokens.shape[1]))
        return np.where(np.arange(tokens.shape[1]) < counts[:, None], tokens, 0)

    def score(self, queries: Tensor, tokens: np.ndarray) -> np.ndarray:
        """Scores float32 (U, m) of tokens int64 (U, m), exact."""
        rows = self.scored[torch.from_numpy(tokens).to(self.scored.device)]
        return torch.einsum("uw,umw->um", queries.float(), rows.float()).cpu().numpy()

    def best(self, queries: Tensor, k: int) -> np.ndarray:
        """Tokens int64 (U, k) of the items with the best scores."""
        tokens = self.near(queries, min(len(self), REFINE * k))
        scores = np.where(tokens > 0, self.score(queries, tokens), -np.inf)
        return np.take_along_axis(tokens, np.lexsort((tokens, -scores))[:, :k], 1)


@dataclass(frozen=True)
class Recall:
    """How an index compares with exact search.

    recall   share of the exact first k that is found, mean over users
    approximate, exact   queries a second, each query on its own, the best of three rounds
    """

    users: int
    k: int
    recall: float
    approximate: float
    exact: float


def build_graph(
    vectors: np.ndarray,
    tokens: np.ndarray,
    done: Callable[[int], object] = lambda n: None,
    graph: Any = None,
) -> Any:
    """A graph of vectors float32 (n, w) under the keys `tokens` int64 (n,); ConfigError without usearch.

    `graph`: one that has the first of them already, and is completed.
    """
    if graph is None:
        options = {"connectivity": LINKS, "expansion_add": BUILD}
        graph = _usearch().Index(ndim=vectors.shape[1], metric="ip", dtype="i8", **options)
    largest = float(np.abs(vectors).max(initial=0)) or 1.0
    for first in range(len(graph), len(tokens), BLOCK):
        part = slice(first, first + BLOCK)
        graph.add(tokens[part], vectors[part] / largest, threads=torch.get_num_threads())
        done(len(tokens[part]))
    return graph


def build_index(
    session: Session, effort: int = EFFORT, done: Callable[[int], object] = lambda n: None
) -> ItemIndex:
    """An index of the items that may be recommended; `effort` as of ItemIndex."""
    tokens, scored = candidate_tokens(session), _scored(session)
    graph = build_graph(
        scored[torch.from_numpy(tokens).to(scored.device)].float().cpu().numpy(), tokens, done
    )
    return ItemIndex(graph, scored, effort)


def save_index(index: ItemIndex, run: Path, weights: str) -> None:
    """Write an index into the folder of its run, whose weights have the digest `weights`."""
    document = {"format": FORMAT, "weights": weights, "items": len(index)}
    publish(run / FOLDER, MARKER, document, {GRAPH: lambda path: index.graph.save(str(path))})


def open_index(session: Session, run: Path, weights: str, effort: int = EFFORT) -> ItemIndex | None:
    """The index in the folder of a run; None where there is none of these weights.

    Raises ArtifactError for a file that is damaged or replaced, ConfigError without usearch.
    """
    folder = run / FOLDER
    if not (folder / MARKER).is_file():
        return None
    again = f"make it again: hllm index {run} --overwrite"
    document = read_document(folder / MARKER, again)
    if document.get("format") != FORMAT or document.get("weights") != weights:
        return None
    check_manifest(folder, document["files"], advice=again)
    entry = document["files"][GRAPH]
    graph = _usearch().Index.restore(str(folder / entry.get("file", GRAPH)), view=True)
    if graph is None or len(graph) != document["items"]:
        raise ArtifactError(f"{folder / GRAPH} cannot be read by this version of usearch; {again}")
    return ItemIndex(graph, _scored(session), effort)


def index_of(session: Session) -> ItemIndex | None:
    """The index in the run that the session's dataset lies in; None where there is none, or items came since."""
    from hllm.runs.folder import read_record

    path = session.data.path  # none once items were added
    if path is None or not (path.parent / FOLDER / MARKER).is_file():
        return None
    return open_index(session, path.parent, weights_of(read_record(path.parent)))


def weights_of(record: Any) -> str:
    """Digest of a run's weights, of the document `config.json`."""
    return str(record["files"]["model.safetensors"]["sha256"])


def nearest(
    index: ItemIndex,
    session: Session,
    queries: Queries,
    k: int,
    candidates: Candidates,
    keep_seen: bool,
    hidden: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[TopK, np.ndarray]:
    """Lists as of `Session.top` from what the index finds, and numbers int64 of the queries that it has too few for."""
    parts, short, device = [], [], device_of(session.ranker)
    none = np.zeros(0, np.int64)
    for part in query_parts(queries, session.max_len, 256):
        rows, tokens = (none, none) if keep_seen else queries.history_pairs(part)
        if hidden is not None and len(hidden[0]):
            inside = (hidden[0] >= part.start) & (hidden[0] < part.stop)
            rows = np.concatenate((rows, hidden[0][inside] - part.start))
            tokens = np.concatenate((tokens, hidden[1][inside]))
        barred = np.unique(rows * (session.data.n_catalogue + 1) + tokens)
        most = int(np.bincount(barred // (session.data.n_catalogue + 1)).max(initial=0))
        m = min(len(index), REFINE * k + most)
        with torch.no_grad():
            vectors = session.ranker.query(query_batch(queries, part, session.max_len, device))
            found = index.near(vectors, m)
            scores = index.score(vectors, found)
        n = part.stop - part.start
        place = np.arange(n)[:, None] * (session.data.n_catalogue + 1)
        free = (found > 0) & (candidates.positions(found.ravel()).reshape(found.shape) >= 0)
        scores = np.where(free & ~np.isin(place + found, barred), scores, -np.inf)
        order = np.lexsort((found, -scores))[:, :k]
        scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
        kept = np.isfinite(scores)
        enough = kept.sum(1) >= min(k, len(candidates))
        short.append(part.start + np.flatnonzero(~enough))
        kept &= enough[:, None]
        row, rank = np.nonzero(kept)
        parts.append(TopK(row + part.start, found[kept], scores[kept], rank + 1))
    if not parts:
        return TopK(none, none, np.zeros(0, np.float32), none), none
    fields = ("rows", "tokens", "scores", "ranks")
    return TopK(*(np.concatenate([getattr(p, f) for p in parts]) for f in fields)), np.concatenate(short)


def check_index(session: Session, index: ItemIndex, k: int = 10) -> Recall:
    """Recall and speed of `index` for users of the dataset, 1,000 at most, seen items kept on both sides."""
    data = session.data
    rows = np.unique(np.linspace(0, data.n_users - 1, min(USERS, data.n_users)).round().astype(np.int64))
    queries = last_queries(data, rows)
    queries = queries.take(np.flatnonzero(queries.ends > queries.starts))
    device = device_of(session.ranker)
    with torch.no_grad():
        found = [
            session.ranker.query(query_batch(queries, part, session.max_len, device)).float()
            for part in query_parts(queries, session.max_len)
        ]
    return compare(index, torch.cat(found), candidate_tokens(session), k)


def compare(index: ItemIndex, queries: Tensor, tokens: np.ndarray, k: int, rounds: int = ROUNDS) -> Recall:
    """Recall and speed for queries float32 (U, w) against the product with every item of `tokens` int64 (n,)."""
    k = min(k, len(tokens))
    table = index.scored[torch.from_numpy(tokens).to(index.scored.device)].float()

    def exactly(query: Tensor) -> np.ndarray:
        best: np.ndarray = tokens[(table @ query).topk(k).indices.cpu().numpy()]
        return best

    def nearly(query: Tensor) -> np.ndarray:
        return index.best(query[None], k)[0]

    seconds, lists = {}, {}
    for name, search in (("exact", exactly), ("approximate", nearly)):
        spent = []
        for _ in range(rounds):
            start = time.perf_counter()
            lists[name] = [search(query) for query in queries]
            spent.append(time.perf_counter() - start)
        seconds[name] = min(spent)
    shares = [
        len(np.intersect1d(a, b)) / k for a, b in zip(lists["exact"], lists["approximate"], strict=True)
    ]
    rate = {name: len(queries) / value for name, value in seconds.items()}
    return Recall(len(queries), k, float(np.mean(shares)), rate["approximate"], rate["exact"])


def candidate_tokens(session: Session) -> np.ndarray:
    """Tokens int64 of the items that may be recommended."""
    candidates = session.candidates()
    return np.delete(candidates.scored, candidates.holes)


def _scored(session: Session) -> Tensor:
    return session.ranker.table().scored  # type: ignore[attr-defined]


def _components(queries: np.ndarray) -> np.ndarray:
    """Queries scaled so that the largest component is 1, what 8-bit integers keep most of."""
    largest = np.abs(queries).max(axis=1, keepdims=True)
    return np.ascontiguousarray(queries / np.where(largest > 0, largest, 1.0), dtype=np.float32)


def _usearch() -> Any:
    if find_spec("usearch") is None:
        raise ConfigError("an index needs usearch: pip install 'hllm[ann]'")
    import usearch.index

    return usearch.index
