"""An approximate index against exact search."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hllm.cli import main
from hllm.errors import ArtifactError, ConfigError
from hllm.pipeline import Recommender
from hllm.recommend import index as module
from hllm.recommend import session as sessions
from hllm.recommend.index import ItemIndex, build_index, check_index

NEEDS_USEARCH = pytest.mark.skipif(find_spec("usearch") is None, reason="needs the extra ann")


class Graph:
    """A graph that finds the best items, by vectors of its own, of `n` items; `lost` tokens it never finds."""

    def __init__(self, vectors: torch.Tensor, n: int, lost: tuple[int, ...] = ()) -> None:
        self.vectors, self.n, self.lost, self.expansion_search = vectors.numpy(), n, lost, 0

    def __len__(self) -> int:
        return self.n

    def search(self, queries: np.ndarray, m: int) -> Any:
        scores = np.atleast_2d(queries) @ self.vectors[: self.n + 1].T
        scores[:, [0, *self.lost]] = -np.inf
        keys = np.argsort(-scores, axis=1)[:, :m]
        return SimpleNamespace(keys=keys, counts=np.full(len(keys), min(m, self.n - len(self.lost))))


def perfect(rec: Recommender, **changes: Any) -> ItemIndex:
    assert rec.network is not None and rec.dataset is not None
    scored = rec.network.table().scored
    return ItemIndex(Graph(scored, rec.dataset.n_candidates, **changes), scored)


def test_recall_is_counted_against_exact_lists(rec: Recommender) -> None:
    found = check_index(rec.session(), perfect(rec), k=5)
    assert (found.users, found.k, found.recall) == (24, 5, 1.0)
    index = perfect(rec)
    worst = ItemIndex(Graph(-index.scored, len(index)), index.scored)
    assert check_index(rec.session(), worst, k=2).recall < 0.5  # looks at 20 of 33 items
    assert found.exact > 0 and found.approximate > 0


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"keep_seen": True},
        {"exclude_seen_since": "30d"},
        {"exclude": [10, 11, 12]},
        {"diversify": "brand:2"},
        {"diversity": 0.3},
        {"only": {"brand": "b1"}},
        {"per_user": {"user_id": [100, 101], "item_id": [12, 13], "allow": [False, True]}},
    ],
)
def test_every_rule_holds_by_the_index_too(
    rec: Recommender, monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any]
) -> None:
    """With an index that finds everything the lists are the exact ones; what it lacks, exact search adds."""
    import polars as pl

    if "per_user" in rules:
        rules = {"per_user": pl.DataFrame(rules["per_user"])}
    exact = rec.recommend(k=6, **rules)
    wanted: list[ItemIndex] = []

    def index_of(_: Any) -> ItemIndex:
        return wanted[-1]

    monkeypatch.setattr(sessions, "index_of", index_of)
    for found in (perfect(rec), perfect(rec, lost=tuple(range(1, 28)))):
        wanted.append(found)
        monkeypatch.setattr(rec, "_kept_session", None)
        near = rec.recommend(k=6, **rules, approximate=True)
        assert near.drop("score").equals(exact.drop("score"))
        np.testing.assert_allclose(near["score"], exact["score"], rtol=1e-5, atol=1e-5)
    assert rec.recommend(k=6, **rules).equals(exact)  # not asked for, and few items
    monkeypatch.setattr(rec, "_kept_session", None)


def test_exact_until_a_million(rec: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    session = rec.session()
    monkeypatch.setattr(session, "_index", [perfect(rec)])
    candidates = session.candidates()
    assert session.index(None, candidates) is None and session.index(False, candidates) is None
    assert session.index(True, candidates) is not None
    monkeypatch.setattr(sessions, "EXACT", 5)
    assert session.index(None, candidates) is not None
    few = rec.session().candidates([10, 11, 12, 13, 14, 15])
    assert session.index(None, few) is None  # so few are scored faster than looked for


@NEEDS_USEARCH
def test_made_once_and_kept_in_the_run(
    rec: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    rec.save_pretrained(run)
    assert main(["recommend", str(run), "--approximate"]) == 2
    assert "hllm index RUN" in capsys.readouterr().err
    assert main(["index", str(run), "--check", "-k", "5"]) == 0
    out = capsys.readouterr().out
    assert "index of 30 items in" in out and "recall@5 1.0000 of 24 users" in out
    stamp = (run / "index" / "items.usearch").stat().st_mtime_ns
    assert main(["index", str(run)]) == 0 and "already" in capsys.readouterr().out
    assert (run / "index" / "items.usearch").stat().st_mtime_ns == stamp
    opened = Recommender.from_pretrained(run, "cpu")
    near, exact = opened.recommend(k=5, approximate=True), opened.recommend(k=5)
    assert near.drop("score").equals(exact.drop("score"))

    document = json.loads((run / "index" / "index.json").read_text())
    assert (
        document["weights"]
        == json.loads((run / "config.json").read_text())["files"]["model.safetensors"]["sha256"]
    )
    with (run / "index" / "items.usearch").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    with pytest.raises(ArtifactError, match=r"hllm index .* --overwrite"):
        Recommender.from_pretrained(run, "cpu").recommend(k=5, approximate=True)
    assert main(["index", str(run), "--overwrite"]) == 0


@NEEDS_USEARCH
def test_items_that_came_since_are_not_missed(rec: Recommender, tmp_path: Path) -> None:
    import polars as pl

    rec.save_pretrained(tmp_path / "run")
    assert main(["index", str(tmp_path / "run")]) == 0
    opened = Recommender.from_pretrained(tmp_path / "run", "cpu")
    new = {"user_id": [100], "item_id": [12], "timestamp": [2_000_000_000]}
    opened.update(pl.DataFrame(new), progress=False)
    with pytest.raises(ConfigError, match="no index of its items as they are"):
        opened.recommend(k=5, approximate=True)


def test_without_the_extra(rec: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'hllm\[ann\]'"):
        build_index(rec.session())
    assert main(["index", str(tmp_path)]) == 2


def test_the_effort_of_the_command_is_the_one_of_searches() -> None:
    """The command does not load torch to say it."""
    from hllm.cli.index import index

    assert index.__kwdefaults__ is None and module.EFFORT in (index.__defaults__ or ())
