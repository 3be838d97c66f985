"""Run folders: what counts as one, what is refused and left alone, and what is cleared."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import hllm
from hllm.artifacts import read_json, write_json, write_text
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, DataError
from hllm.pipeline import Recommender
from hllm.runs.folder import clear_run, is_run, read_record, run_state
from hllm.runs.record import RunRecord
from hllm.runs.save import read_run, write_run
from hllm.testing import world
from hllm.train.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture
def recommender(data: Dataset, make_config: Callable[..., Any]) -> Recommender:
    return Recommender(make_config(epochs=1)).fit(data, device="cpu", progress=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_states(tmp_path: Path, recommender: Recommender) -> None:
    assert run_state(tmp_path / "none") == "new"
    assert run_state(tmp_path) == "new"
    recommender.save_pretrained(tmp_path / "run")
    assert run_state(tmp_path / "run") == "finished"
    (tmp_path / "run" / "config.json").unlink()
    assert run_state(tmp_path / "run") == "unfinished"
    (tmp_path / "run" / "data" / ".tokens.npy.123.tmp").touch()  # of a killed process
    assert run_state(tmp_path / "run") == "unfinished"
    clear_run(tmp_path / "run")
    assert run_state(tmp_path / "run") == "new"


@pytest.mark.parametrize(
    "files",
    [
        ["notes.txt"],
        ["README.md"],
        ["data/ratings.csv"],
        ["data/raw/ratings.csv", "README.md"],
        ["checkpoints/epoch-1.pt"],
        ["config.json", "model.safetensors", "README.md"],  # a model of the hub
        ["data"],
    ],
)
def test_foreign_folders_are_refused_and_left_alone(
    tmp_path: Path, data: Dataset, recommender: Recommender, make_config: Callable[..., Any], files: list[str]
) -> None:
    for name in files:
        write_text(tmp_path / name, "{}")
    before = tree(tmp_path)
    with pytest.raises(ArtifactError, match=r"is not empty and holds no run .*choose another --out"):
        run_state(tmp_path)
    with pytest.raises(ArtifactError):
        Recommender(make_config()).fit(data, out=tmp_path, device="cpu", progress=False)
    with pytest.raises(ArtifactError):
        recommender.save_pretrained(tmp_path)
    assert tree(tmp_path) == before
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is a file"):
        run_state(tmp_path / "file")


def test_the_dataset_itself_is_never_cleared(
    tmp_path: Path, recommender: Recommender, make_config: Callable[..., Any]
) -> None:
    recommender.save_pretrained(tmp_path / "run")
    before = tree(tmp_path / "run")
    with pytest.raises(ArtifactError, match="holds the dataset to train on"):
        Recommender(make_config()).fit(
            Dataset.load(tmp_path / "run" / "data"), out=tmp_path / "run", device="cpu"
        )
    assert tree(tmp_path / "run") == before


def test_a_run_reads_back_as_it_was(tmp_path: Path, recommender: Recommender) -> None:
    recommender.save_pretrained(tmp_path / "run")
    network, config, data, record = read_run(tmp_path / "run", CPU)
    assert config == recommender.config
    assert record == recommender.record
    assert data.fingerprint == recommender.dataset.fingerprint
    assert not network.training
    for name, value in recommender.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    saved = read_json(tmp_path / "run" / "config.json")
    assert (saved["format"], saved["version"]) == ("hllm-run", 2)
    assert saved["best"]["epoch"] == 1 and saved["seconds"] > 0
    assert saved["dataset"]["n_users"] == 40 and "torch" in saved["versions"]
    write_run(tmp_path / "again", network, config, data, record)
    assert tree(tmp_path / "again") == tree(tmp_path / "run")


def test_saving_over_another_run_leaves_none_of_it(tmp_path: Path, recommender: Recommender) -> None:
    recommender.save_pretrained(tmp_path / "run")
    for name in ("metrics.json", "report.html", "README.md", "history.jsonl"):
        write_text(tmp_path / "run" / name, "of the first")
    recommender.save_pretrained(tmp_path / "run")  # the same run once more: its metrics still hold
    assert (tmp_path / "run" / "metrics.json").exists()
    recommender.record = dataclasses.replace(recommender.record, created="later")
    recommender.save_pretrained(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json",
        "data",
        "model.safetensors",
    ]


def test_what_is_no_run_says_what_to_do(tmp_path: Path, data: Dataset, recommender: Recommender) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(ArtifactError) as error:
            read_record(folder)
        return str(error.value)

    assert "no run at" in message(tmp_path / "none") and "hllm train DATASET --out" in message(
        tmp_path / "none"
    )
    assert "is not a run folder" in message(tmp_path)
    data.save(tmp_path / "data set")
    assert "is a dataset, not a run; train on it" in message(tmp_path / "data set")
    write_text(tmp_path / "run" / "checkpoints" / "last.safetensors", "")
    assert "not finished; go on with the same hllm train command" in message(tmp_path / "run")
    recommender.save_pretrained(tmp_path / "old")
    record = read_json(tmp_path / "old" / "config.json")
    write_json(tmp_path / "old" / "config.json", {**record, "version": 99})
    assert is_run(tmp_path / "old")
    assert "run version 99, this hllm reads up to 2" in message(tmp_path / "old")


def test_weights_of_another_shape_are_named(tmp_path: Path, recommender: Recommender) -> None:
    recommender.save_pretrained(tmp_path / "run")
    record = read_json(tmp_path / "run" / "config.json")
    record["config"]["users"]["n_layers"] = 2
    write_json(tmp_path / "run" / "config.json", record)
    with pytest.raises(ArtifactError, match=r"config\.json was changed or damaged after it was written"):
        read_run(tmp_path / "run", CPU)
    unsealed = {key: value for key, value in record.items() if key not in ("seal", "files")}
    write_json(tmp_path / "run" / "config.json", unsealed)  # as an earlier hllm wrote it
    with pytest.raises(ArtifactError, match=r"model\.safetensors does not fit its config\.json"):
        read_run(tmp_path / "run", CPU)


def test_nothing_to_train_on_or_to_validate_on(make_config: Callable[..., Any], tmp_path: Path) -> None:
    def fit(data: Dataset) -> None:
        Recommender(make_config()).fit(data, out=tmp_path / "run", device="cpu", progress=False)

    rows = [(u, i, i) for u in range(5) for i in range(u, u + 3)]
    short = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    with pytest.raises(DataError, match="no user of tables has two training events"):
        fit(Dataset.from_tables(short, time_unit="index"))
    data = world(n_users=20)
    blind = dataclasses.replace(data, queries={**data.queries, "validation": data.queries["validation"][:0]})
    with pytest.raises(DataError, match="no validation users"):
        fit(blind)
    assert not (tmp_path / "run").exists()


def test_records_default_to_nothing_known() -> None:
    assert RunRecord().embeddings is None and RunRecord().best == {}


FOREIGN = (".DS_Store", "Thumbs.db", "train.log", "events.out.tfevents.1")
DEEP = ("data/.DS_Store", "checkpoints/.DS_Store", "data/packed/Thumbs.db", "data/notes.txt")


def test_case_e8_foreign_files_are_left_alone_and_an_interrupted_run_goes_on(
    tmp_path: Path, train: Callable[..., Any]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".DS_Store").write_text(".DS_Store")
    assert run_state(run) == "new"
    straight, _ = train(tmp_path / "straight", epochs=2)
    train(run, epochs=2)
    for name in FOREIGN + DEEP:
        (run / name).write_text(name)
    assert run_state(run) == "unfinished"  # `train_network` leaves config.json to its caller
    resumed, _ = train(run, resume=True, epochs=2)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    clear_run(run)
    assert sorted(tree(run)) == sorted(FOREIGN + DEEP)
    assert all(text.decode() == name for name, text in tree(run).items())


def test_case_e8_a_dataset_beside_notes_is_no_run(tmp_path: Path, data: Dataset) -> None:
    """A project folder with a prepared dataset under `data` must not be taken for an interrupted run."""
    data.save(tmp_path / "data")
    (tmp_path / "notes.txt").touch()
    before = tree(tmp_path)
    with pytest.raises(ArtifactError, match="is not empty and holds no run"):
        run_state(tmp_path)
    (tmp_path / "data" / "dataset.json").unlink()
    with pytest.raises(ArtifactError, match="is not empty and holds no run"):
        run_state(tmp_path)
    assert len(tree(tmp_path)) == len(before) - 1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_case_e8_half_a_checkpoint_is_one_line_with_the_next_command(
    tmp_path: Path, train: Callable[..., Any], share: float
) -> None:
    train(tmp_path / "run", epochs=1)
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    with pytest.raises(
        ArtifactError, match=r"last\.safetensors.*with the same command and --overwrite"
    ) as caught:
        train(tmp_path / "run", resume=True, epochs=1)
    assert "\n" not in str(caught.value)
    train(tmp_path / "run", resume=False, epochs=1)


def test_case_e2_training_goes_on_by_the_rules_of_windows(
    tmp_path: Path, train: Callable[..., Any], windows: None, saved_every_step: None
) -> None:
    straight, _ = train(tmp_path / "straight", epochs=2)
    train(tmp_path / "run", epochs=2)
    resumed, _ = train(tmp_path / "run", resume=True, epochs=2)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_case_e16_training_stops_where_the_dataset_was_overwritten(
    tmp_path: Path, data: Dataset, make_config: Callable[..., Any]
) -> None:
    opened = data.save(tmp_path / "d")
    with open(tmp_path / "d" / "packed" / "tokens.npy", "r+b") as file:
        file.seek(-8, 2)
        file.write(bytes([1, 0, 0, 0] * 2))
    with pytest.raises(ArtifactError, match="was overwritten while it was open"):
        Recommender(make_config(epochs=1)).fit(opened, out=tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()


def test_case_e16_a_dataset_prepared_anew_during_training(
    tmp_path: Path, data: Dataset, make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is the old dataset's to its last file."""
    opened = data.save(tmp_path / "d")
    fit = Trainer.fit

    def disturbed(self: Trainer) -> Any:
        world(n_users=40, n_items=30, seed=7, split="temporal").save(tmp_path / "d")
        return fit(self)

    monkeypatch.setattr(Trainer, "fit", disturbed)
    recommender = Recommender(make_config(epochs=1)).fit(
        opened, out=tmp_path / "run", device="cpu", progress=False
    )
    values = recommender.evaluate(bootstrap=0).values
    kept = Recommender.from_pretrained(tmp_path / "run", device="cpu")
    assert kept.dataset is not None and kept.dataset.fingerprint == data.fingerprint
    assert kept.evaluate(bootstrap=0).values == values
    assert Dataset.load(tmp_path / "d").fingerprint != data.fingerprint


@pytest.mark.parametrize(
    "name", ["model.safetensors", "data", "data/items.parquet", "data/packed/tokens.npy"]
)
def test_case_e17_files_of_another_run_are_found(
    tmp_path: Path, recommender: Recommender, make_config: Callable[..., Any], name: str
) -> None:
    recommender.save_pretrained(tmp_path / "run")
    others = world(n_users=40, n_items=31, seed=3)
    Recommender(make_config(epochs=1)).fit(others, out=tmp_path / "other", device="cpu", progress=False)
    target = tmp_path / "run" / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    os.replace(tmp_path / "other" / name, target)
    with pytest.raises(ArtifactError, match="damaged, or not the file that was written with this folder"):
        read_run(tmp_path / "run", CPU)


def test_validation_samples_users_where_scores_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    import hllm.runs.train as module

    data = world()
    n, items = len(data.queries["validation"]), data.n_candidates
    training = load_config("sasrec").training
    assert module.validation_users(data, training) is None
    monkeypatch.setattr(module, "VALIDATION_SCORES", n * items)
    assert module.validation_users(data, training) is None
    monkeypatch.setattr(module, "VALIDATION_SCORES", 5 * items + 1)
    assert module.validation_users(data, training) == 5
    assert module.checkpoint_rule(data, training) == "best validation ndcg@10 of 5 sampled users"
    asked = training.model_copy(update={"valid_users": 8})
    assert module.validation_users(data, asked) == 8
    assert module.validation_users(data, training.model_copy(update={"valid_users": n})) is None


def test_a_prepared_dataset_trains_without_polars(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    """What is read of a dataset and its item vectors in training are arrays."""
    folder = tmp_path / "data"
    dataset = world(n_users=40, n_items=30)
    dataset.save(folder)
    hllm.embed(Dataset.load(folder), item_llm="tfidf", progress=False)
    small = ["d_model=16", "n_layers=1", "n_heads=2", "epochs=1", "whiten_rank=4", "item_llm=tfidf"]
    settings = [word for setting in small for word in ("--set", setting)]
    arguments = ["train", str(folder), *settings, "--out", str(tmp_path / "run"), "--device", "cpu"]
    program = "import sys; sys.modules['polars'] = None; from hllm.cli.app import main; main()"
    done = run_python("-c", program, *arguments)
    assert done.returncode == 0, done.stderr
    assert run_state(tmp_path / "run") == "finished"
