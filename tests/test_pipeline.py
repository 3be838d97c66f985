"""The whole road in Python: fit, evaluate, recommend, add items, save, load."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

import hllm
from hllm.artifacts import read_json
from hllm.baselines.fit import BASELINES, SHOWN, fit_baseline
from hllm.config import make_config
from hllm.data.dataset import Dataset
from hllm.errors import AmbiguousError, ArtifactError, ConfigError, DataError, DeviceError, HLLMError
from hllm.pipeline import Recommender, evaluate_run
from hllm.testing import check_ranker, world, world_tables

SMALL = {
    "d_model": 16, "n_layers": 1, "n_heads": 2, "epochs": 3, "batch_tokens": 200, "learning_rate": 1e-2,
}  # fmt: skip
SMALL_TEXT = {"item_llm": "random", "adapter_hidden": 16}


def fit(data: Dataset, preset: str = "demo", out: Path | None = None, **settings: Any) -> Recommender:
    text = SMALL_TEXT if preset == "demo" else {}
    rank = {"whiten_rank": 8} if text and settings.get("whiten", "whiten") == "whiten" else {}
    settings = {**SMALL, **text, **rank, **settings}
    return Recommender.from_preset(preset, **settings).fit(data, out=out, device="cpu", progress=False)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(string_ids=True)


@pytest.fixture(scope="module")
def recommender(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    """Read anew by tests that change it; embeddings are made on the way, as none are there."""
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setenv("HLLM_HOME", str(tmp_path_factory.mktemp("home")))
        return fit(data)


@pytest.fixture
def run(recommender: Recommender, tmp_path: Path) -> Path:
    recommender.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_it_learns_the_world(recommender: Recommender, data: Dataset) -> None:
    own, others = evaluate_run(recommender, ["test"], bootstrap=20)
    assert own["test"]["ndcg@10"] > 2 * others["test"]["popularity"]["ndcg@10"]
    assert set(others["test"]) == set(SHOWN)
    assert (
        own["test"].protocol.max_len == 200 and own["test"].protocol.checkpoint == "best validation ndcg@10"
    )
    assert recommender.evaluate(data, split="validation", k=10, bootstrap=0).ks == (10,)


@pytest.mark.parametrize(
    "settings", [{}, {"id_embedding": False}, {"item_llm": "tfidf"}, {"whiten": "center"}]
)
def test_models_keep_the_contract_of_rankers(data: Dataset, settings: dict[str, Any]) -> None:
    check_ranker(fit(data, epochs=1, **settings).network, data)


@pytest.mark.parametrize("preset", ["sasrec", "sasrec-paper", "hstu", "rechub", "rechub-doc"])
def test_presets_keep_the_contract_of_rankers(data: Dataset, preset: str) -> None:
    own = {"item_llm": "random"} if preset.startswith("rechub") else {}  # no adapter: the width is the text's
    recommender = Recommender.from_preset(preset, epochs=1, n_layers=1, **own)
    check_ranker(recommender.fit(data, device="cpu", progress=False).network, data)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_the_contract_of_rankers(data: Dataset, name: str) -> None:
    check_ranker(fit_baseline(name, data), data)


def test_what_is_prepared_stays_until_something_changes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hllm.recommend.session as module

    made: list[Any] = []
    original = module.make_rules
    monkeypatch.setattr(module, "make_rules", lambda *a, **k: (made.append(k), original(*a, **k))[1])
    recommender = Recommender.from_pretrained(run, device="cpu")
    first = recommender.recommend(history=[["001"]], k=999)
    table = recommender.network.table() if recommender.network else None
    assert recommender.recommend(history=[["001"]], k=999).equals(first)
    fewer = recommender.recommend(history=[["001"]], k=999, exclude=["006"])
    assert fewer.equals(
        first.filter(pl.col("item_id") != "006").with_columns(
            rank=pl.int_range(1, len(first), dtype=pl.Int64)
        )
    )
    assert len(made) == 1
    assert recommender.network is not None and recommender.network.table() is table
    recommender.add_items(pl.DataFrame(NEW), device="cpu")
    assert set(recommender.recommend(history=[["001"]], k=999)["item_id"]) - set(first["item_id"]) == {
        "900", "901"
    }  # fmt: skip
    assert len(made) == 2
    with torch.no_grad():
        recommender.network.get_parameter("source.parts.text.adapter.2.bias").add_(1.0)
    assert not recommender.recommend(history=[["001"]], k=999)["score"].equals(first["score"])


# ---------------------------------------------------------------------- saving and loading


def test_a_run_folder_recommends_the_same(run: Path, recommender: Recommender) -> None:
    other = Recommender.from_pretrained(run, device="cpu")
    assert other.config == recommender.config
    for question in ({}, {"split": "test"}, {"history": [["001", "006"]]}, {"users": ["u007"], "k": 40}):
        assert other.recommend(**question).equals(recommender.recommend(**question)), question
    assert other.evaluate(bootstrap=0).values == recommender.evaluate(bootstrap=0).values


def test_the_run_folder_alone_is_enough(tmp_path: Path) -> None:
    """Dataset folder, embeddings and cache gone, the run moved."""
    saved = world(n_users=30).save(tmp_path / "dataset")
    recommender = fit(saved, out=tmp_path / "run")
    expected = recommender.recommend(split="test"), recommender.evaluate(bootstrap=0).values
    shutil.rmtree(tmp_path / "dataset")
    (tmp_path / "run").rename(tmp_path / "moved")
    other = Recommender.from_pretrained(tmp_path / "moved", device="cpu")
    assert other.recommend(split="test").equals(expected[0])
    assert other.evaluate(bootstrap=0).values == expected[1]
    assert other.recommend(titles=[["Quiet River (1950)"]], k=3).height == 3
    assert not (tmp_path / "moved" / "data" / "interactions.parquet").exists()


def test_configuration_survives_a_run(run: Path, recommender: Recommender) -> None:
    saved = read_json(run / "config.json")["config"]
    assert make_config(saved) == recommender.config
    assert saved == recommender.config.model_dump()


def test_case_d21_nothing_is_pickled(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving and loading work where unpickling is impossible; pandas 3 strings come back unchanged."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("Unpickler", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    interactions, items, users = (frame.to_pandas() for frame in world_tables(20, string_ids=True))
    assert (
        isinstance(interactions["item_id"].dtype, pd.StringDtype) or interactions["item_id"].dtype == object
    )
    data = Dataset.from_tables(interactions, items, users).save(tmp_path / "dataset")
    recommender = fit(data, out=tmp_path / "new", epochs=1)
    loaded = Recommender.from_pretrained(tmp_path / "new", device="cpu")
    frame = loaded.recommend(users=["u000"], k=3)
    assert frame.equals(recommender.recommend(users=["u000"], k=3))
    assert set(frame["item_id"]) <= set(items["item_id"])
    assert frame.to_pandas()["user_id"].tolist() == ["u000"] * 3
    Recommender.from_pretrained(run, device="cpu").recommend(k=1)


@pytest.mark.parametrize("kind", ["polars", "pandas", "arrow"])
def test_any_table_library_gives_the_same_model(kind: str) -> None:
    convert: dict[str, Callable[[pl.DataFrame], Any]] = {
        "polars": lambda f: f,
        "pandas": lambda f: f.to_pandas(),
        "arrow": lambda f: f.to_arrow(),
    }
    tables = world_tables(20)
    data = Dataset.from_tables(*map(convert[kind], tables), name="world", time_unit="s")
    assert data.fingerprint == world(20).fingerprint
    frame = fit(data, "sasrec", epochs=1).recommend(users=[100], k=3)
    assert frame["user_id"].dtype == frame["item_id"].dtype == pl.Int64
    assert isinstance(frame.to_arrow(), pa.Table)
    assert frame.equals(fit(world(20), "sasrec", epochs=1).recommend(users=[100], k=3))


# ---------------------------------------------------------------------- new items


NEW = {"item_id": ["900", "901"], "title": ["Sudden River (1957)", None], "genres": ["Western", None]}


def test_new_items_are_recommended_without_training(run: Path, tmp_path: Path) -> None:
    recommender = Recommender.from_pretrained(run, device="cpu")
    before = recommender.recommend(users=["u001"], k=999)
    values = recommender.evaluate(bootstrap=0).values
    assert recommender.add_items(pl.DataFrame(NEW), device="cpu") is recommender
    after = recommender.recommend(users=["u001"], k=999)
    assert set(after["item_id"]) - set(before["item_id"]) == {"900", "901"}
    old = after.filter(~pl.col("item_id").is_in(["900", "901"]))
    assert old["item_id"].to_list() == before["item_id"].to_list()
    assert recommender.evaluate(bootstrap=0).values == values  # they do not compete in evaluation
    assert recommender.recommend(history=[["900", "001"]], k=2).height == 2
    assert recommender.recommend(titles=[["sudden river (1957)"]], k=2).height == 2

    recommender.save_pretrained(tmp_path / "grown")
    grown = Recommender.from_pretrained(tmp_path / "grown", device="cpu")
    assert grown.recommend(users=["u001"], k=999).equals(after)
    grown.add_items(pd.DataFrame({"item_id": ["902"], "title": ["Paper Song"], "genres": ["Horror"]}), "cpu")
    assert "902" in grown.recommend(users=["u001"], k=999)["item_id"].to_list()
    recommender.save_pretrained(run)  # over the folder whose arrays are mapped into memory
    assert Recommender.from_pretrained(run, device="cpu").recommend(users=["u001"], k=999).equals(after)


def test_case_e2_a_model_saved_over_itself_by_the_rules_of_windows(
    run: Path, tmp_path: Path, windows: None
) -> None:
    Recommender.from_pretrained(run, device="cpu").save_pretrained(tmp_path / "run")
    recommender = Recommender.from_pretrained(tmp_path / "run", device="cpu")
    recommender.add_items(pl.DataFrame(NEW), device="cpu")
    recommender.save_pretrained(tmp_path / "run")
    again = Recommender.from_pretrained(tmp_path / "run", device="cpu")
    assert again.recommend(users=["u001"], k=999).equals(recommender.recommend(users=["u001"], k=999))
    again.save_pretrained(tmp_path / "run")


def test_new_items_with_the_text_of_a_known_one_score_alike(data: Dataset) -> None:
    """Without ID embeddings text is all there is."""
    recommender = fit(data, epochs=1, id_embedding=False)
    known = data.items.row(7, named=True)
    recommender.add_items(pl.DataFrame([{**known, "item_id": "900"}]), device="cpu")
    frame = recommender.recommend(history=[["001"]], k=999)
    scores = dict(zip(frame["item_id"], frame["score"], strict=True))
    assert scores["900"] == pytest.approx(scores[known["item_id"]], abs=1e-5)


def test_items_that_cannot_be_added(run: Path, data: Dataset) -> None:
    recommender = Recommender.from_pretrained(run, device="cpu")
    before = recommender.recommend(k=5)
    with pytest.raises(DataError, match="in the catalogue already"):
        recommender.add_items(data.items[:1], device="cpu")
    with pytest.raises(ConfigError, match="item_llm=None"):
        fit(data, "sasrec", epochs=1).add_items(pl.DataFrame(NEW), device="cpu")
    with pytest.raises(ConfigError, match="TF-IDF vectors"):
        fit(data, epochs=1, item_llm="tfidf").add_items(pl.DataFrame(NEW), device="cpu")
    assert recommender.recommend(k=5).equals(before)


# ---------------------------------------------------------------------- mistakes


def test_untrained() -> None:
    with pytest.raises(HLLMError, match="not trained yet: call fit"):
        Recommender.from_preset("sasrec").recommend()


def test_another_dataset_is_refused(recommender: Recommender) -> None:
    with pytest.raises(ConfigError, match=r"trained on world .*, not on world"):
        recommender.evaluate(world(seed=9))


def test_unknown_names(data: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'sasrek' .*did you mean 'sasrec'"):
        Recommender.from_preset("sasrek")
    with pytest.raises(ConfigError, match=r"unknown setting 'learning_rat' .*did you mean 'learning_rate'"):
        Recommender.from_preset("sasrec", learning_rat=1)
    with pytest.raises(DeviceError, match="unknown device 'gpu'"):
        Recommender.from_preset("sasrec").fit(data, device="gpu")
    with pytest.raises(ArtifactError, match="no run at"):
        Recommender.from_pretrained("no/such/run")


def test_embeddings_are_made_once_and_ambiguity_is_an_error(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hllm.items.embed as module

    calls = []
    original = module.Resolved.complete
    monkeypatch.setattr(module.Resolved, "complete", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    tiny = world(n_users=15, n_items=21)
    fit(tiny, epochs=1)
    fit(tiny, epochs=1)
    assert len(calls) == 1

    def ambiguous(*_: Any, **__: Any) -> None:
        raise AmbiguousError("2 sets of embeddings match x. Choose one by its key, for example ...")

    monkeypatch.setattr(module.Resolved, "load", ambiguous)
    with pytest.raises(AmbiguousError, match="2 sets of embeddings"):
        fit(tiny, epochs=1)
    assert len(calls) == 1


def test_the_facade_is_public() -> None:
    assert hllm.Recommender is Recommender


@pytest.mark.parametrize("k", [2.0, None, "2", True, 0, -1, np.float32(2), [2], 10**30 + 0.5])
def test_case_e11_numbers_of_items_that_are_none(recommender: Recommender, k: Any) -> None:
    with pytest.raises(HLLMError, match="k="):
        recommender.recommend(k=k)
    if k != [2]:
        with pytest.raises(HLLMError, match="k="):
            recommender.evaluate(k=k, bootstrap=0)


def test_case_e11_numpys_integers_are_numbers(recommender: Recommender) -> None:
    assert recommender.evaluate(k=np.int64(5), bootstrap=0).ks == (5,)
    assert recommender.evaluate(k=np.array([5, 1]), bootstrap=0).ks == (1, 5)
    assert recommender.recommend(history=[["012"]], k=np.int32(2)).height == 2


def test_case_e12_candidates_are_the_users_ids() -> None:
    """Ids that look like tokens are ids all the same."""
    data = world()  # item ids from 10, tokens from 1
    recommender = fit(data, "sasrec", epochs=1)
    ids = data.item_ids[3:6]
    found = recommender.recommend(candidates=ids, keep_seen=True, k=5)
    assert set(found["item_id"].to_list()) == set(ids)
    texts = recommender.recommend(candidates=[str(i) for i in ids], keep_seen=True, k=5)
    assert texts.equals(found)
    metrics = recommender.evaluate(candidates=np.array(ids), bootstrap=0)
    assert (metrics.protocol.n_items, metrics.protocol.candidates) == (3, "given")
    for call in (recommender.recommend, recommender.evaluate):
        with pytest.raises(DataError, match="unknown item_id 1;"):
            call(candidates=[1])
        with pytest.raises(ConfigError, match="unknown candidates '12'"):
            call(candidates="12")


def test_short_in_a_notebook() -> None:
    rec = Recommender.from_preset("sasrec", d_model=8, n_layers=1, n_heads=2, epochs=1, max_len=8)
    assert repr(rec) == "Recommender(preset: sasrec, items: ids alone, state: not trained)"
    rec.fit(world(20, 15), device="cpu", progress=False)
    assert repr(rec).startswith(
        "Recommender(preset: sasrec, items: ids alone, trained on: world, 18 items, best epoch: 1 (ndcg@10 "
    )
    assert "<tr><th>preset</th><td>sasrec</td></tr>" in rec._repr_html_()
