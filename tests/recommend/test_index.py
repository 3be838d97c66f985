"""An approximate index against exact search."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hllm.cli import main
from hllm.errors import ConfigError
from hllm.pipeline import Recommender
from hllm.recommend import index as module
from hllm.recommend.index import build_index, check_index, write_index

NEEDS_FAISS = pytest.mark.skipif(find_spec("faiss") is None, reason="needs the extra ann")


class Backwards:
    """An index that finds the worst items."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = query @ self.vectors.T
        best = np.argsort(scores, axis=1)[:, :k]
        return scores, best + 1


def test_recall_is_counted_against_exact_lists(rec: Recommender) -> None:
    assert rec.network is not None and rec.dataset is not None
    n = rec.dataset.n_candidates
    scored = rec.network.table().scored[1 : n + 1].numpy()
    found = check_index(rec.session(), Backwards(-scored), k=5)
    assert (found.users, found.k, found.recall) == (24, 5, 1.0)
    assert check_index(rec.session(), Backwards(scored), k=5).recall == 0.0
    assert found.exact > 0 and found.approximate > 0


@NEEDS_FAISS
def test_the_graph_finds_nearly_everything(rec: Recommender, tmp_path: Path) -> None:
    import faiss

    index = build_index(rec.session())
    assert rec.dataset is not None and index.ntotal == rec.dataset.n_candidates
    assert check_index(rec.session(), index, k=5).recall > 0.99
    write_index(tmp_path / "items.faiss", index)
    assert faiss.read_index(str(tmp_path / "items.faiss")).ntotal == index.ntotal


def test_without_the_extra(rec: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hllm\[ann\]'"):
        build_index(rec.session())
    assert main(["index", str(tmp_path)]) == 2
