"""Folders of earlier versions still open, and mean the same (tests/fixtures/README.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hllm.artifacts import read_json
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.items.embed import load_embeddings
from hllm.pipeline import Recommender
from hllm.runs.folder import read_record, saved_identity
from hllm.runs.record import identity_of

FOLDERS = Path(__file__).parent.parent / "fixtures" / "39b754e"
RUNS = ("demo", "sasrec", "rechub")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: opening may not depend on, nor change, what is in the repository."""
    return Path(shutil.copytree(FOLDERS, tmp_path_factory.mktemp("earlier") / "39b754e"))


def test_a_dataset_opens(folders: Path) -> None:
    data = Dataset.load(folders / "dataset")
    record = read_json(folders / "dataset" / "dataset.json")
    assert data.fingerprint == record["fingerprint"]
    assert (data.n_users, data.n_candidates, data.n_catalogue) == (20, 12, 15)
    assert int(data.train_mask.sum()) == 83 and len(data.queries["test"]) == 20
    embeddings = load_embeddings(data, "tfidf")
    assert embeddings.spec["key"] == "83ada41af306364d"
    assert embeddings.vectors.shape[0] == 16 and np.isfinite(embeddings.vectors).all()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_recommends_what_it_did(folders: Path, name: str) -> None:
    expected = json.loads((folders / f"expected-{name}.json").read_text())
    found = Recommender.from_pretrained(folders / name, "cpu").recommend(k=5).to_dict(as_series=False)
    assert found["user_id"] == expected["user_id"] and found["rank"] == expected["rank"]
    assert found["item_id"] == expected["item_id"]
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-4, atol=1e-4)


def test_flat_settings_are_read_into_sections(folders: Path) -> None:
    config = Recommender.from_pretrained(folders / "demo", "cpu").config
    assert (config.preset, config.items.whiten_rank, config.users.d_model) == ("demo", 6, 8)
    assert (config.training.epochs, config.runtime.precision) == (2, "fp32")


def test_the_same_settings_are_the_same_run(folders: Path) -> None:
    """What had no effect, and how a machine ran it, does not make it another run."""
    settings = {
        "n_layers": 1, "epochs": 2, "batch_tokens": 64, "max_len": 6, "dropout": 0.1, "d_model": 8, "n_heads": 2,
        "max_distance": 6, "loss": "sampled", "n_negatives": 5, "warmup_ratio": 0.05, "min_lr_ratio": 0.01,
    }  # fmt: skip
    config = load_config("sasrec", overrides={**settings, "capture": False})
    data = Dataset.load(folders / "sasrec" / "data")
    assert saved_identity(folders / "sasrec") == identity_of(data, config, None)
    other = load_config("sasrec", overrides={**settings, "seed": 1})
    assert saved_identity(folders / "sasrec") != identity_of(data, other, None)


def test_saved_again_it_has_todays_form(folders: Path, tmp_path: Path) -> None:
    earlier = Recommender.from_pretrained(folders / "rechub", "cpu")
    earlier.save_pretrained(tmp_path / "run")
    document = read_record(tmp_path / "run")
    assert document["version"] == 2 and document["config"]["users"]["user_model"] == "rechub"
    assert Recommender.from_pretrained(tmp_path / "run", "cpu").config == earlier.config
