"""The dataset folder: identical bytes, interruptions, embeddings kept, foreign folders named."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

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
    with pytest.raises(ArtifactError, match=r"times.npy is damaged, .*it has 152 bytes, not 160"):
        Dataset.load(tmp_path / "d")
    artifacts.write_json(marker, {k: v for k, v in meta.items() if k not in ("files", "seal")})
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
    with pytest.raises(
        ArtifactError, match=r"cannot (create|write) .*d: Not a directory; choose another folder"
    ):
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


# ------------------------------------------------------------------------- integrity


def test_case_e1_and_e2_by_the_rules_of_windows(tmp_path, windows, monkeypatch):
    """A dataset is saved, and saved over one that is open and mapped."""
    opened = make().save(tmp_path / "d")
    tokens = opened.tokens.tolist()
    new = make(split="temporal", cutoffs=(2, 3)).save(tmp_path / "d")
    assert Dataset.load(tmp_path / "d").fingerprint == new.fingerprint != opened.fingerprint
    assert opened.tokens.tolist() == tokens
    opened.verify()
    again = make(titles=("x", "y", "z")).save(tmp_path / "d")  # a third, with both others still mapped
    assert Dataset.load(tmp_path / "d").fingerprint == again.fingerprint
    assert again.items["title"].to_list() == ["x", "y", "z"]


def test_case_e2_a_failed_replacement_loses_nothing(tmp_path, monkeypatch):
    old = make().save(tmp_path / "d")
    before = contents(tmp_path / "d")
    replace = os.replace

    def refusing(source, target):
        if str(target).endswith("dataset.json"):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(ArtifactError, match=r"cannot write .*dataset\.json: Permission denied"):
        make(titles=("x", "y", "z")).save(tmp_path / "d")
    monkeypatch.undo()
    assert contents(tmp_path / "d") == before and Dataset.load(tmp_path / "d").fingerprint == old.fingerprint


def test_case_e8_foreign_files_are_left_alone(tmp_path):
    foreign = [".DS_Store", "Thumbs.db", "train.log", "events.out.tfevents.1", "packed/.DS_Store"]
    make().save(tmp_path / "d")
    for name in foreign:
        (tmp_path / "d" / name).write_text(name)
    make(titles=("x", "y", "z")).save(tmp_path / "d")
    (tmp_path / "d" / "dataset.json").unlink()  # as if interrupted
    new = make(titles=("x", "y", "new")).save(tmp_path / "d")
    assert all((tmp_path / "d" / name).read_text() == name for name in foreign)
    assert Dataset.load(tmp_path / "d").fingerprint == new.fingerprint
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").touch()
    assert make().save(tmp_path / "new").path == tmp_path / "new"


def test_case_e16_an_open_dataset_is_of_one_fingerprint_or_says_that_it_changed(tmp_path):
    make().save(tmp_path / "d")
    opened = Dataset.load(tmp_path / "d")
    other = make(titles=("x", "y", "z"), split="temporal", cutoffs=(2, 3))
    before = {name: np.array(a) for name, a in opened._arrays().items()}
    other.save(tmp_path / "d")
    opened.verify()
    assert all((array == before[name]).all() for name, array in opened._arrays().items())
    with pytest.raises(ArtifactError, match=r"items.*missing.*if it was prepared anew, open it again"):
        opened.items  # noqa: B018
    with pytest.raises(ArtifactError):
        opened.copy_to(tmp_path / "run" / "data")
    assert not (tmp_path / "run" / "data").exists() or not any((tmp_path / "run" / "data").iterdir())
    make().save(tmp_path / "d")  # the first once more: its files are there again
    opened.copy_to(tmp_path / "run" / "data")
    assert Dataset.load(tmp_path / "run" / "data").items["title"].to_list() == ["A", "B", "C"]


def test_case_e16_what_a_run_has_is_not_written_again(tmp_path):
    opened = make().save(tmp_path / "d")
    opened.copy_to(tmp_path / "data")
    before = {f: f.stat().st_ino for f in (tmp_path / "data").rglob("*")}
    make(titles=("x", "y", "z")).save(tmp_path / "d")
    opened.copy_to(tmp_path / "data")  # as at the end of a training
    assert before == {f: f.stat().st_ino for f in (tmp_path / "data").rglob("*")}
    (tmp_path / "data" / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(ArtifactError):
        opened.copy_to(tmp_path / "data")


def test_case_e16_a_reader_sees_one_of_the_two(tmp_path, run_python):
    """Opened again and again while another process prepares: never a mixture, never an error."""
    makes = [make(), make(titles=("x", "y", "z"), ties="shuffle", split="temporal", cutoffs=(2, 3))]
    known = {d.fingerprint: d.items["title"].to_list() for d in makes}
    makes[0].save(tmp_path / "d")
    code = """
import sys
from hllm.data.dataset import Dataset
opened = 0
for line in sys.stdin:
    data = Dataset.load(sys.argv[1])
    opened += 1
    print(data.fingerprint, flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "d")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as reader:
        reader.stdin.write("\n" * 200)
        reader.stdin.close()
        i = 0
        while reader.poll() is None:
            i += 1
            makes[i % 2].save(tmp_path / "d")
        found = reader.stdout.read().split()
    assert reader.returncode == 0 and len(found) == 200 and set(found) <= set(known)


def rewrite(path, change):
    array = np.load(path)
    np.save(path, np.ascontiguousarray(change(array)))


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokens", np.zeros_like),
        ("tokens", lambda a: a[::-1]),
        ("offsets", lambda a: a[::-1]),
        ("times", lambda a: a + 1),
        ("train_mask", np.logical_not),
        ("validation", lambda a: a + 1),
        ("tokens", lambda a: a.astype(np.int64)),
    ],
)
def test_case_e17_changed_arrays_are_found(tmp_path, manifest, name, change):
    """By their digests; in a folder of an earlier hllm, which has none, by the fingerprint made again."""
    make().save(tmp_path / "d")
    if not manifest:
        make_earlier(tmp_path / "d")
    rewrite(tmp_path / "d" / "packed" / f"{name}.npy", change)
    with pytest.raises(ArtifactError, match="damaged"):
        Dataset.load(tmp_path / "d")


def make_earlier(path):
    """The folder as hllm wrote it before it had manifests."""
    document = json.loads((path / "dataset.json").read_text())
    artifacts.write_json(
        path / "dataset.json", {k: v for k, v in document.items() if k not in ("files", "seal")}
    )


def test_folders_of_an_earlier_hllm_open(tmp_path):
    saved = make().save(tmp_path / "d")
    make_earlier(tmp_path / "d")
    opened = Dataset.load(tmp_path / "d")
    assert opened.meta == saved.meta and opened.files == {} and opened.items.equals(saved.items)
    opened.copy_to(tmp_path / "run")
    assert Dataset.load(tmp_path / "run").files
    new = make(titles=("x", "y", "z")).save(tmp_path / "d")
    assert Dataset.load(tmp_path / "d").items.equals(new.items)


def test_case_e17_arrays_overwritten_in_place_are_found_before_training(tmp_path):
    opened = make().save(tmp_path / "d")
    with open(tmp_path / "d" / "packed" / "tokens.npy", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.int32(3).tobytes())
    with pytest.raises(ArtifactError, match=r"tokens\.npy was overwritten while it was open"):
        opened.verify()
    with pytest.raises(ArtifactError, match="changed while it was in use"):
        opened.copy_to(tmp_path / "run")


@pytest.mark.parametrize("file", ["items.parquet", "users.parquet", "packed/tokens.npy", "dataset.json"])
def test_case_e17_files_of_another_dataset_are_found(tmp_path, file):
    make().save(tmp_path / "a")
    make(titles=("A", "B", "D"), split="temporal", cutoffs=(2, 3)).save(tmp_path / "b")
    events = pl.DataFrame(
        {"user_id": [1, 1, 1, 3], "item_id": ["a", "c", "b", "a"], "timestamp": [1, 2, 3, 4]}
    )
    Dataset.from_tables(events, pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", "B", "D"]})).save(
        tmp_path / "b"
    )
    for entry in (tmp_path / "b").rglob(f"{Path(file).stem}*"):
        os.replace(entry, tmp_path / "a" / file)
    with pytest.raises(ArtifactError, match="damaged"):
        Dataset.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["tokens.npy", "items.parquet", "dataset.json"])
def test_case_e19_a_full_disk_keeps_the_old_dataset(tmp_path, full_disk, name):
    old = make().save(tmp_path / "d")
    before = contents(tmp_path / "d")
    new = make(titles=("x" * 50_000, os.urandom(50_000).hex(), "z"))
    full_disk({"tokens.npy": 20, "items.parquet": 30_000, "dataset.json": 2_000}[name])
    with pytest.raises(ArtifactError, match=r"cannot write .*make room, then run the same command again"):
        (new if name != "dataset.json" else make(titles=("x", "y", "z"))).save(tmp_path / "d")
    full_disk(0)
    assert contents(tmp_path / "d") == before and Dataset.load(tmp_path / "d").fingerprint == old.fingerprint
    assert new.save(tmp_path / "d").fingerprint == new.fingerprint


def test_case_e19_paths_that_cannot_be(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "d", tmp_path / ("x" * 300)):
        with pytest.raises(ArtifactError) as caught:
            make().save(path)
        assert "\n" not in str(caught.value)
        with pytest.raises(ArtifactError):
            Dataset.load(path)


def test_case_e18_two_writers_take_turns(tmp_path):
    """Both end, and the folder is one of the two."""
    code = """
import sys, polars as pl
from hllm.data.dataset import Dataset
n = int(sys.argv[2])
events = pl.DataFrame({"user_id": [1] * n, "item_id": list(range(n)), "timestamp": list(range(n))})
for _ in range(10):
    Dataset.from_tables(events).save(sys.argv[1])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "d"), n], env=environment) for n in "56"
    ]
    assert [writer.wait(600) for writer in writers] == [0, 0]
    assert Dataset.load(tmp_path / "d").n_candidates in (5, 6)
    assert len(contents(tmp_path / "d")) == 10


KILLED = """
import os, random, signal, sys
import polars as pl
from hllm.data.dataset import Dataset
steps = [int(sys.argv[2])]
def counted(call):
    def wrapped(*args, **options):
        steps[0] -= 1
        if steps[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return wrapped
for name in ("fsync", "replace", "unlink", "rmdir", "open"):
    setattr(os, name, counted(getattr(os, name)))
n = 2000
events = pl.DataFrame({
    "user_id": [i * 7919 % 53 for i in range(n)], "item_id": [i * i % 41 for i in range(n)],
    "timestamp": list(range(n)),
})
Dataset.from_tables(events).save(sys.argv[1])
"""


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("there", [False, True])
def test_killed_anywhere_and_run_again_gives_the_same_bits(tmp_path, run_python, kills, there):
    assert run_python("-c", KILLED, str(tmp_path / "straight"), "-1").returncode == 0
    rng, steps = random.Random(kills), 45
    for kill in range(kills):
        target = tmp_path / str(kill)
        if there:
            old = make().save(target).fingerprint
        done = run_python("-c", KILLED, str(target), str(rng.randrange(1, steps)))
        assert done.returncode in (0, -9), done.stderr
        if there and done.returncode:
            assert Dataset.load(target).fingerprint in (old, Dataset.load(tmp_path / "straight").fingerprint)
        elif done.returncode and target.exists():
            with pytest.raises(ArtifactError):
                Dataset.load(target)
        assert run_python("-c", KILLED, str(target), "-1").returncode == 0
        again, straight = Dataset.load(target), Dataset.load(tmp_path / "straight")
        assert again.meta == straight.meta and again.items.equals(straight.items)
        assert len(contents(target)) == 10 and (there or contents(target) == contents(tmp_path / "straight"))
