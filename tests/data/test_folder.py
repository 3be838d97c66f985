"""The dataset folder: identical bytes, interruptions, embeddings kept, foreign folders named."""

import json
import os

import numpy as np
import polars as pl
import pytest

from hllm import artifacts
from hllm.data.dataset import Dataset
from hllm.data.folder import check_target
from hllm.errors import ArtifactError


def make(titles=("A", "B", "C"), **options):
    events = pl.DataFrame(
        {"user_id": [1, 1, 1, 2], "item_id": ["a", "b", "c", "a"], "timestamp": [1, 2, 3, 4]}
    )
    return Dataset.from_tables(events, pl.DataFrame({"item_id": ["a", "b", "c"], "title": titles}), **options)


def contents(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def test_round_trip(tmp_path):
    data = make()
    loaded = data.save(tmp_path / "new" / "d")
    assert loaded.path == tmp_path / "new" / "d" and loaded.meta == data.meta
    for name in ("tokens", "times", "offsets", "train_mask"):
        ours, theirs = getattr(data, name), getattr(loaded, name)
        assert isinstance(theirs, np.memmap) and ours.dtype == theirs.dtype and (ours == theirs).all()
    assert (loaded.queries["test"] == data.queries["test"]).all()
    assert loaded.interactions.equals(data.interactions) and loaded.items.equals(data.items)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["d"]  # no temporary folder stays


def test_two_runs_give_identical_bytes(tmp_path, run_python):
    code = """
import sys, polars as pl
from hllm.data.dataset import Dataset
n = 300_000
events = pl.DataFrame({
    "user_id": [str(i * 7919 % 5003) for i in range(n)],
    "item_id": [i * i % 4001 for i in range(n)],
    "timestamp": [i % 977 for i in range(n)],
})
Dataset.from_tables(events, min_interactions=3, ties="shuffle").save(sys.argv[1])
"""
    for threads in ("1", "3"):
        run = run_python(
            "-c", code, str(tmp_path / threads), POLARS_MAX_THREADS=threads, PYTHONHASHSEED=threads
        )
        assert run.returncode == 0, run.stderr
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert str(tmp_path) not in (tmp_path / "1" / "dataset.json").read_text()


def test_preparing_again_keeps_embeddings_and_replaces_the_rest(tmp_path):
    make().save(tmp_path / "d")
    store = tmp_path / "d" / "embeddings" / "key"
    store.mkdir(parents=True)
    (store / "shard").write_bytes(b"vectors")
    again = make(titles=("A", "B", "new")).save(tmp_path / "d")
    assert again.items["title"].to_list() == ["A", "B", "new"]
    assert (store / "shard").read_bytes() == b"vectors"


def test_saving_a_loaded_dataset_over_itself(tmp_path):
    loaded = make().save(tmp_path / "d")
    before = contents(tmp_path / "d")
    loaded.save(tmp_path / "d")
    assert contents(tmp_path / "d") == before


@pytest.mark.parametrize("stop_at", range(20))
def test_an_interrupted_save_is_the_old_dataset_or_the_new_one(tmp_path, monkeypatch, stop_at):
    """Stop before the n-th rename: nothing is lost, and nothing of the other stays."""
    target = tmp_path / "d"
    old = make().save(target).fingerprint
    before = contents(target)
    new = make(titles=("A", "B", "new"))
    rename, done = os.replace, []

    def stopping(source, destination):
        if len(done) == stop_at:
            raise KeyboardInterrupt
        done.append(destination)
        rename(source, destination)

    monkeypatch.setattr(os, "replace", stopping)
    try:
        new.save(target)
        finished = True
    except KeyboardInterrupt:
        finished = False
    monkeypatch.undo()
    # Nine files are finished and compared, the items alone get a new place, and the document is last.
    assert finished == (stop_at >= 11)
    if finished:
        assert Dataset.load(target).fingerprint == new.fingerprint
    else:
        assert contents(target) == before and Dataset.load(target).fingerprint == old
    assert new.save(target).fingerprint == new.fingerprint != old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]


@pytest.mark.parametrize("marker", [False, True])
def test_kill_during_a_save(tmp_path, run_python, marker):
    """kill -9 before the mark is written: the folder is the old dataset, or says that it is unfinished."""
    code = """
import os, signal, sys, polars as pl
from hllm.artifacts import manifest
from hllm.data.dataset import Dataset
manifest.write_document = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
Dataset.from_tables(pl.DataFrame({"user_id": [1], "item_id": [2], "timestamp": [3]})).save(sys.argv[1])
"""
    if marker:
        old = make().save(tmp_path / "d").fingerprint
    assert run_python("-c", code, str(tmp_path / "d")).returncode == -9
    if marker:
        assert Dataset.load(tmp_path / "d").fingerprint == old
    else:
        with pytest.raises(ArtifactError, match="interrupted; run the same hllm data prepare command again"):
            Dataset.load(tmp_path / "d")
    check_target(tmp_path / "d")
    again = make(titles=("x", "y", "z"))
    again.save(tmp_path / "d")
    again.save(tmp_path / "fresh")
    ours, fresh = contents(tmp_path / "d"), contents(tmp_path / "fresh")
    assert len(ours) == len(fresh) and (marker or ours == fresh)  # nothing of the killed one stays


def test_a_folder_with_other_files_is_never_written_into(tmp_path):
    (tmp_path / "interactions.parquet").write_bytes(b"the user's own")
    with pytest.raises(ArtifactError, match="not empty and no dataset"):
        make().save(tmp_path)
    assert contents(tmp_path) == {"interactions.parquet": b"the user's own"}
    foreign = tmp_path / "foreign"
    artifacts.write_json(foreign / "dataset.json", {"format": "something else"})
    with pytest.raises(ArtifactError, match="not empty and no dataset"):
        make().save(foreign)
    with pytest.raises(ArtifactError, match="is a file"):
        make().save(tmp_path / "interactions.parquet")


def test_an_empty_folder_is_fine(tmp_path):
    assert make().save(tmp_path).path == tmp_path


def test_missing_folder_names_the_next_command(tmp_path):
    with pytest.raises(ArtifactError, match=r"no dataset at .*nowhere; make one with: hllm data prepare"):
        Dataset.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it is empty"),
        (["config.json", "model.safetensors"], "it is a run folder; use it with: hllm evaluate"),
        (
            ["u.data", "u.item"],
            "holds raw ml-100k files; prepare them with: hllm data prepare ml-100k --from",
        ),
        (["ratings.dat"], "hllm data prepare ml-1m --from"),
        (
            ["notes.txt", "log.csv"],
            "it holds log.csv; prepare them with: hllm data prepare tabular --interactions",
        ),
        (["a", "b", "c", "d"], "it holds a, b, c and more"),
        (["packed/tokens.npy", "items.parquet"], "its preparation was interrupted"),
    ],
)
def test_foreign_folders_are_named(tmp_path, files, message):
    for name in files:
        artifacts.write_text(tmp_path / name, "{}")
    with pytest.raises(ArtifactError, match=message):
        Dataset.load(tmp_path)


def test_parent_of_a_dataset_and_a_plain_file(tmp_path):
    make().save(tmp_path / "d")
    with pytest.raises(ArtifactError, match=r"the dataset is inside it: .*d$"):
        Dataset.load(tmp_path)
    with pytest.raises(ArtifactError, match="it is a file"):
        Dataset.load(tmp_path / "d" / "dataset.json")


def test_other_versions_and_damage(tmp_path):
    make().save(tmp_path / "d")
    marker = tmp_path / "d" / "dataset.json"
    meta = json.loads(marker.read_text())
    artifacts.write_json(marker, {**meta, "version": 2})
    with pytest.raises(ArtifactError, match="dataset version 2, this hllm reads 1"):
        Dataset.load(tmp_path / "d")
    artifacts.write_json(marker, meta)
    artifacts.write_array(tmp_path / "d" / "packed" / "times.npy", np.zeros(3, np.int64))
    with pytest.raises(ArtifactError, match=r"times.npy has shape \(3,\) of int64, not \(4,\)"):
        Dataset.load(tmp_path / "d")
    (tmp_path / "d" / "packed" / "tokens.npy").write_bytes(b"rubbish")
    with pytest.raises(ArtifactError, match=r"cannot read .*tokens.npy"):
        Dataset.load(tmp_path / "d")
    marker.write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a dataset folder"):
        Dataset.load(tmp_path / "d")


def test_a_parent_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot create .*d: Not a directory; choose another folder"):
        make().save(tmp_path / "file" / "d")


def test_training_reads_a_folder_without_a_table_library(tmp_path, run_python):
    make().save(tmp_path / "set")
    code = """
import sys
sys.modules["polars"] = sys.modules["pandas"] = sys.modules["pyarrow"] = None  # an import would fail
from hllm.data.dataset import Dataset
from hllm.data.batches.queries import eval_queries, query_batches
from hllm.data.batches.training import TrainLoader
from hllm.data.batches.windows import pieces
data = Dataset.load(sys.argv[1] + "/set")
data.copy_to(sys.argv[1] + "/run")
histories = data.train_histories()
print(len(pieces(histories, 5, 0, 0)), len(list(TrainLoader(histories, 5, 64, 0).epoch(0))))
print(len(list(query_batches(eval_queries(data, "test"), 5))), data.train_counts().tolist())
print(Dataset.load(sys.argv[1] + "/run").fingerprint == data.fingerprint)
"""
    run = run_python("-c", code, str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["0 0", "1 [0, 2, 0, 0]", "True"]
