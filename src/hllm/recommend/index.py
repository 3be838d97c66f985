"""An approximate index of item vectors, and how much of the exact lists it finds.

A graph over the vectors is walked towards the query instead of scoring every item (HNSW: Malkov and Yashunin, 2016,
arXiv:1603.09320), by faiss. Scores are inner products, as the model's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.artifacts import atomic
from hllm.data.batches.queries import last_queries, query_batch, query_parts
from hllm.errors import ConfigError
from hllm.evaluate.evaluation import device_of

if TYPE_CHECKING:
    from hllm.recommend.session import Session

LINKS, BUILD = 32, 128  # links of an item in the graph, and candidates looked at while it is made
USERS, ROUNDS = 1000, 3


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


def build_index(session: Session, effort: int = 128) -> Any:
    """A faiss index of the items that may be recommended, whose ids are tokens.

    effort  candidates that a search looks at: more find more, and take longer. Raises ConfigError without faiss.
    """
    faiss = _faiss()
    tokens = _tokens(session)
    vectors = session.ranker.table().scored[torch.from_numpy(tokens)].float().cpu().numpy()  # type: ignore[attr-defined]
    graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = BUILD, effort
    index = faiss.IndexIDMap(graph)
    index.add_with_ids(np.ascontiguousarray(vectors), tokens)
    return index


def write_index(path: Path, index: Any) -> None:
    """Write an index, which `faiss.read_index` opens."""
    with atomic(path) as temporary:
        _faiss().write_index(index, str(temporary))


def check_index(session: Session, index: Any, k: int = 10) -> Recall:
    """Recall and speed of `index` for users of the dataset, 1,000 at most, seen items kept on both sides."""
    data = session.data
    rows = np.unique(np.linspace(0, data.n_users - 1, min(USERS, data.n_users)).round().astype(np.int64))
    queries = last_queries(data, rows)
    queries = queries.take(np.flatnonzero(queries.ends > queries.starts))
    device = device_of(session.ranker)
    with torch.no_grad():
        found = [
            session.ranker.query(query_batch(queries, part, session.max_len, device)).float().cpu().numpy()
            for part in query_parts(queries, session.max_len)
        ]
    asked = np.ascontiguousarray(np.concatenate(found))
    tokens = _tokens(session)
    k = min(k, len(tokens))
    table = session.ranker.table().scored[torch.from_numpy(tokens)].float().cpu()  # type: ignore[attr-defined]

    def exactly(query: np.ndarray) -> np.ndarray:
        best: np.ndarray = (table @ torch.from_numpy(query)).topk(k).indices.numpy()
        return tokens[best]

    def nearly(query: np.ndarray) -> np.ndarray:
        best: np.ndarray = index.search(query[None], k)[1][0]
        return best

    seconds = {}
    lists = {}
    for name, search in (("exact", exactly), ("approximate", nearly)):
        spent = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            lists[name] = [search(query) for query in asked]
            spent.append(time.perf_counter() - start)
        seconds[name] = min(spent)
    shares = [
        len(np.intersect1d(a, b)) / k for a, b in zip(lists["exact"], lists["approximate"], strict=True)
    ]
    rate = {name: len(asked) / value for name, value in seconds.items()}
    return Recall(len(asked), k, float(np.mean(shares)), rate["approximate"], rate["exact"])


def _tokens(session: Session) -> np.ndarray:
    candidates = session.candidates()
    return np.delete(candidates.scored, candidates.holes)


def _faiss() -> Any:
    if find_spec("faiss") is None:
        raise ConfigError("an index needs faiss: pip install 'hllm[ann]'")
    return import_module("faiss")  # of the distribution faiss-cpu
