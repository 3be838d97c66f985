"""Sound folders and files, of which a case gets its own copy."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hllm.items.embed import embed
from hllm.pipeline import Recommender
from hllm.testing import world, world_tables

SMALL = {"d_model": 8, "n_layers": 1, "n_heads": 2, "epochs": 1, "max_len": 8, "batch_tokens": 200}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with embeddings, a run, and tables in three formats."""
    folder = tmp_path_factory.mktemp("sound")
    data = world(12, 10, string_ids=True).save(folder / "data")
    embed(data, "random", progress=False)
    rec = Recommender.from_preset("sasrec", **SMALL).fit(data, device="cpu", progress=False)
    rec.save_pretrained(folder / "run")
    interactions, items, _ = world_tables(12, 10, string_ids=True)
    interactions.write_csv(folder / "events.csv")
    interactions.write_parquet(folder / "events.parquet")
    items.write_ndjson(folder / "items.jsonl")
    items.write_csv(folder / "items.csv")
    rec.recommend(k=3).write_csv(folder / "recs.csv")
    interactions.select("user_id", "item_id").unique("user_id", maintain_order=True).write_csv(
        folder / "truth.csv"
    )
    (folder / "users.txt").write_text("u001\nu002\n")
    (folder / "settings.yaml").write_text("d_model: 8\nn_layers: 1\nn_heads: 2\nepochs: 1\nmax_len: 8\n")
    (folder / "empty").touch()
    return folder


@pytest.fixture(scope="session")
def trained(sound: Path) -> Recommender:
    return Recommender.from_pretrained(sound / "run", device="cpu")


@pytest.fixture
def work(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands of a case are run."""
    folder = tmp_path / "work"
    shutil.copytree(sound, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """What lies in a folder: a digest of each file; locks, which say nothing, are left out."""

    def look(folder: Path) -> dict[str, str]:
        found = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or path.is_dir():
                found[name] = "link" if path.is_symlink() else "folder"
            elif not name.endswith(".lock"):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    return look
