"""Blocks, whole batches after damage, and stores that an earlier hllm wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hllm.errors import ArtifactError
from hllm.items.embed import embed, load_embeddings
from hllm.items.encoders.controls import random_vector
from hllm.items.store import encode
from hllm.items.store.encode import Job
from hllm.items.store.shards import Store, read_index, spec_key, text_key

OLD = Path(__file__).parent / "old"  # written by commit 39b754e: one file a batch, no checksum of indexes
FINISHED, KILLED = "59cc3e7a2fb21e30", "990ad46c5ee98d38"
OLD_KEY = "d7eba3f9f86bb90b"
SPEC = {
    "model": "random", "revision": None, "weights": None, "prompt": "", "fields": ["title"], "pooling": "none",
    "precision": "fp32", "max_tokens": 0, "catalogue": None,
}  # fmt: skip
TEXTS = {text_key(text): text for text in (f"{'x' * (i % 5)} {i}" for i in range(40))}


class Counting:
    """A stub whose vectors depend, in their last bit, on the batch; it may be interrupted."""

    dim = 8

    def __init__(self, stop_after: int | None = None) -> None:
        self.batches: list[list[str]] = []
        self.stop_after = stop_after

    def prepare(self, texts: list[str]) -> np.ndarray:
        self.texts, self.truncated = texts, np.zeros(len(texts), dtype=bool)
        return np.array([len(text) for text in texts])

    def encode(self, rows: np.ndarray) -> np.ndarray:
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append([self.texts[i] for i in rows])
        vectors = np.stack([random_vector(self.texts[i])[:8] for i in rows])
        return vectors * np.float32(1 + 1e-6 * len(rows))


def complete(folder: Path, encoder: Counting, texts: dict[bytes, str] = TEXTS) -> Store:
    spec = {"key": spec_key(SPEC), **SPEC}
    store = Store(folder / spec["key"])
    Job(spec, [], texts, lambda: encoder, 4, str).run(store, show=False)
    return Store(store.folder)


def only_bytes(store: Store) -> bytes:
    (path,) = store.folder.glob("shard-*")
    return path.read_bytes()


def writes(monkeypatch) -> list[int]:
    """Rows of each block that is written."""
    sizes: list[int] = []
    append = Store.append
    monkeypatch.setattr(Store, "append", lambda self, s: sizes.append(len(s.keys)) or append(self, s))
    return sizes


def test_many_batches_are_one_file(tmp_path, monkeypatch) -> None:
    sizes = writes(monkeypatch)
    store = complete(tmp_path, encoder := Counting())
    assert sizes == [40]
    assert len(encoder.batches) == 10
    assert store.keys() == TEXTS.keys()


def test_a_block_is_written_by_size_and_by_time(tmp_path, monkeypatch) -> None:
    sizes = writes(monkeypatch)
    monkeypatch.setattr(encode, "BLOCK_BYTES", 2 * 4 * 8 * 4)  # two batches
    complete(tmp_path / "size", Counting())
    assert sizes == [8] * 5 + [40]  # and merged
    sizes.clear()
    monkeypatch.undo()
    sizes = writes(monkeypatch)
    monkeypatch.setattr(encode, "BLOCK_SECONDS", 0)
    complete(tmp_path / "time", Counting())
    assert sizes == [4] * 10 + [40]


def test_an_interrupted_encoding_keeps_every_finished_batch_and_ends_with_the_same_bytes(tmp_path) -> None:
    straight = complete(tmp_path / "straight", Counting())
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path / "broken", Counting(stop_after=3))
    assert len(Store(tmp_path / "broken" / spec_key(SPEC)).keys()) == 12
    resumed = complete(tmp_path / "broken", encoder := Counting())
    assert sum(map(len, encoder.batches)) == 28
    assert only_bytes(resumed) == only_bytes(straight)


def test_after_damage_whole_batches_are_redone_to_the_same_bits(tmp_path, monkeypatch) -> None:
    straight = complete(tmp_path / "straight", Counting())
    monkeypatch.setattr(encode, "BLOCK_BYTES", 1)
    monkeypatch.setattr(Store, "compact", lambda self: None)
    folder = complete(tmp_path / "damaged", Counting()).folder
    (folder / "shard-000004.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        mended = complete(tmp_path / "damaged", encoder := Counting())
    assert [len(batch) for batch in encoder.batches] == [4]
    keys = list(TEXTS)
    np.testing.assert_array_equal(mended.take(keys).vectors, straight.take(keys).vectors)


def test_one_new_text_is_encoded_alone(tmp_path) -> None:
    complete(tmp_path, Counting())
    more = TEXTS | {text_key("new"): "new"}
    store = complete(tmp_path, encoder := Counting(), more)
    assert encoder.batches == [["new"]]
    assert store.keys() == more.keys()


@pytest.fixture
def old(make_dataset):
    """A dataset whose embeddings the earlier version made: one store finished, one killed at its third batch."""
    data = make_dataset()
    shutil.copytree(OLD, data.embeddings_dir)
    return data


def test_an_old_finished_store_opens_and_nothing_is_encoded_again(old) -> None:
    (index,) = (OLD / FINISHED).glob("index-*")
    keys, has_text = read_index(OLD / FINISHED, index.stem.removeprefix("index-"))
    assert has_text.all()
    titles = [f"title: {title}" for title in old.items["title"]]
    assert [key.tobytes() for key in keys] == [text_key(title) for title in titles]
    expected = np.stack([random_vector(title) for title in titles])
    np.testing.assert_array_equal(Store(OLD / FINISHED).take(keys).vectors, expected)
    found = load_embeddings(old, "random", text_fields=["title"])
    np.testing.assert_array_equal(found.vectors[1:], expected)
    assert found.spec["key"] == FINISHED
    assert embed(old, "random", text_fields=["title"], device="cpu", progress=False).stats["encoded"] == 0


def test_an_old_interrupted_store_goes_on(old) -> None:
    with pytest.raises(ArtifactError, match="not finished"):
        load_embeddings(old, "random")
    found = embed(old, "random", device="cpu", progress=False)
    assert (found.spec["key"], found.stats["encoded"], found.stats["reused"]) == (KILLED, 2, 6)
    assert len(list((old.embeddings_dir / KILLED).glob("shard-*"))) == 1


def test_keys_of_stores_stay_what_they_were() -> None:
    spec = {"model": "/models/tiny", "weights": "w", "prompt": "p", "fields": ["title"], "pooling": "mean"}
    spec |= {"precision": "fp32", "max_tokens": 256, "revision": None, "catalogue": None}
    assert spec_key(spec) == OLD_KEY
    assert spec_key(spec | {"model": r"C:\models\tiny"}) == OLD_KEY
