import os
import subprocess
import sys

import numpy as np
import pytest

from hllm.errors import ArtifactError
from hllm.items.store import mapped
from hllm.items.store import shards as stores
from hllm.items.store.mapped import KeyTable
from hllm.items.store.shards import (
    Shard,
    Store,
    join,
    key_array,
    locked,
    read_index,
    spec_key,
    text_key,
    write_index,
)

SPEC = {
    "model": "m",
    "weights": "w",
    "prompt": "p",
    "fields": ["title"],
    "pooling": "mean",
    "precision": "fp32",
}


def shard(*texts, dim=4):
    keys = key_array([text_key(t) for t in texts])
    vectors = np.stack([np.random.default_rng(len(t)).standard_normal(dim) for t in texts]).astype(np.float32)
    return Shard(vectors, keys, np.array([len(t) > 3 for t in texts]))


def files(folder):
    return sorted(p.name for p in folder.glob("shard-*"))


def test_rows_are_found_by_their_text_in_any_order(tmp_path):
    a, b = shard("x", "yy"), shard("zzzz")
    written = Store(tmp_path)
    written.append(a)
    written.append(b)
    keys = [text_key("zzzz"), text_key("x"), text_key("zzzz")]
    for store in (written, Store(tmp_path)):
        np.testing.assert_array_equal(
            store.take(keys).vectors, np.stack([b.vectors[0], a.vectors[0], b.vectors[0]])
        )
        assert store.take(keys).truncated.tolist() == [True, False, True]
        assert store.find([text_key("other"), text_key("x")]).tolist()[0] == -1


def test_compaction_keeps_every_row_and_gives_the_same_bytes_whatever_the_history(tmp_path):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    for folder in (one.folder, two.folder):
        folder.mkdir()
    for part in (shard("x", "yy"), shard("zzzz")):
        one.append(part)
    for part in (shard("zzzz", "x"), shard("yy")):
        two.append(part)
    one.compact()
    two.compact()
    assert files(one.folder) == files(two.folder) == ["shard-000002.safetensors"]
    a, b = Store(one.folder), Store(two.folder)
    keys = [text_key(t) for t in ("x", "yy", "zzzz")]
    np.testing.assert_array_equal(a.take(keys).vectors, b.take(keys).vectors)
    np.testing.assert_array_equal(next(iter(a.shards.values())).keys, next(iter(b.shards.values())).keys)


def test_large_shards_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SMALL_SHARD", 40)
    monkeypatch.setattr(stores, "LARGE_SHARD", 40)
    store = Store(tmp_path)
    store.append(shard("a", "bb", "ccc"))  # 48 bytes
    for text in ("dddd", "eeeee", "ffffff"):
        store.append(shard(text))  # 16 bytes each: two fit into one
    store.compact()
    assert sorted(len(s.keys) for s in Store(tmp_path).shards.values()) == [1, 2, 3]
    assert len(Store(tmp_path).keys()) == 6


def test_a_merge_interrupted_before_the_old_shards_were_deleted(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(shard("x"))
    store.append(shard("yy"))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *a, **k: None)
        store.compact()
    assert len(files(tmp_path)) == 3
    again = Store(tmp_path)
    again.compact()
    assert len(files(tmp_path)) == 1
    assert Store(tmp_path).keys() == {text_key("x"), text_key("yy")}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_shard_is_noticed_and_its_rows_count_as_missing(tmp_path, damage):
    store = Store(tmp_path)
    store.append(shard("x"))
    store.append(shard("yy"))
    path = tmp_path / "shard-000000.safetensors"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes({"cut": data[:-9], "flip": data, "empty": b"", "text": b"hello"}[damage])
    opened = Store(tmp_path)
    assert opened.damaged == [path]
    assert opened.keys() == {text_key("yy")}
    with pytest.warns(UserWarning, match=r"shard-000000\.safetensors.* damaged.* encoded again"):
        opened.drop_damaged()
    opened.append(shard("x"))
    assert files(tmp_path) == ["shard-000001.safetensors", "shard-000002.safetensors"]


def test_a_shard_of_another_store_is_not_read(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    Store(tmp_path / "one").append(shard("x"))
    os.rename(tmp_path / "one" / "shard-000000.safetensors", tmp_path / "two" / "shard-000000.safetensors")
    assert not Store(tmp_path / "two").keys()


def test_the_key_depends_on_what_decides_the_vectors_and_on_nothing_else():
    key = spec_key(SPEC)
    assert len(key) == 16
    assert spec_key({**SPEC, "dim": 3, "made_with": {"device": "cuda"}, "source": "hub"}) == key
    for name in SPEC:
        assert spec_key({**SPEC, name: "other"}) != key
    assert spec_key({**SPEC, "model": "/a/tiny"}) == spec_key({**SPEC, "model": "/elsewhere/tiny"})


def test_index_round_trip(tmp_path):
    keys = [text_key("a"), None, text_key("a"), text_key("b")]
    write_index(tmp_path, "f" * 64, keys)
    found, has_text = read_index(tmp_path, "f" * 64)
    assert has_text.tolist() == [True, False, True, True]
    assert [key.tobytes() for key in found[has_text]] == [key for key in keys if key]


HOLD = """
import sys, time
from pathlib import Path
from hllm.items.store.shards import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path, monkeypatch):
    monkeypatch.setattr("hllm.artifacts.locks.WAIT_SECONDS", 0.1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ArtifactError, match=r"is writing.* same command again"),
            locked(tmp_path),
        ):
            pass
        with pytest.raises(ArtifactError, match="is writing"):  # an index too has one writer
            write_index(tmp_path, "f" * 64, [text_key("a")])
        other.kill()
    (tmp_path / ".shard-000000.safetensors.123.tmp").write_bytes(b"left over")
    with locked(tmp_path):
        assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_large_shard_is_mapped_and_its_blocks_are_checked_when_they_are_read(
    tmp_path, monkeypatch, dtype
) -> None:
    monkeypatch.setattr(mapped, "WHOLE", 0)
    monkeypatch.setattr(mapped, "CHECKED", 4 * 4 * np.dtype(dtype).itemsize)  # four rows a block
    texts = [f"text {i}" for i in range(30)]
    whole = join([shard(*texts)])
    drawn = np.random.default_rng(0).standard_normal((30, 4))
    whole = Shard(drawn.astype(dtype), whole.keys, whole.truncated)
    Store(tmp_path).append(whole)
    store = Store(tmp_path)
    (opened,) = store.shards.values()
    assert isinstance(opened.vectors, np.memmap) and opened.unchecked.tolist() == [True] * 8
    places = store.find(whole.keys[[5, 29]])
    np.testing.assert_array_equal(store.read(places), whole.vectors[[5, 29]].astype(np.float32))
    assert np.flatnonzero(~opened.unchecked).tolist() == [1, 7]
    assert store.dtype == dtype
    opened.check()
    path = tmp_path / "shard-000000.safetensors"
    data = bytearray(path.read_bytes())
    data[data.index(whole.vectors[17].tobytes())] ^= 1
    path.write_bytes(data)
    store = Store(tmp_path)
    np.testing.assert_array_equal(store.read(store.find(whole.keys[:16])), whole.vectors[:16])
    with pytest.raises(ArtifactError, match=r"damaged; run: hllm embed DATASET --prune"):
        store.read(store.find(whole.keys[17:18]))
    with pytest.raises(ArtifactError):
        next(iter(store.shards.values())).check()
    data[data.index(whole.keys[3].tobytes())] ^= 1
    path.write_bytes(data)
    assert Store(tmp_path).damaged == [path]
    path.write_bytes(data[: len(data) // 2])
    assert Store(tmp_path).damaged == [path]


def test_keys_are_found_whatever_their_halves_share() -> None:
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 2, (400, 16), dtype=np.uint8)
    keys[:, :8] = draw.integers(0, 2, (400, 8)) * (np.arange(8) == 7)  # two first halves alone
    keys = np.unique(keys, axis=0)[draw.permutation(len(np.unique(keys, axis=0)))]
    table = KeyTable([keys[:100], keys[100:200]])
    np.testing.assert_array_equal(table.find(keys[:200]), np.arange(200))
    assert (table.find(keys[200:]) == -1).all()
    assert [k.tobytes() for k in keys[:200][table.order]] == sorted(k.tobytes() for k in keys[:200])
    assert KeyTable([]).find(keys[:2]).tolist() == [-1, -1]
