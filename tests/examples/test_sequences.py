"""Sequences, their packed dataset and its split, in the folder's own order of users and tokens."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hllm.compat.rechub import histories, windows
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError
from hllm.formats import rechub as formats
from rechub_scripts.families import BEAUTY, BOOKS, MOVIELENS
from rechub_scripts.processed import open_folder, token_rows
from rechub_scripts.sequences import is_current, make_dataset, pack, write_folder


def frame(strings: bool = False, factor: int = 1) -> pl.DataFrame:
    """200 events of 15 users over 12 items in no order at all; identifiers do not sort as they appear."""
    random = np.random.default_rng(1)
    users, items = random.integers(0, 15, 200), random.integers(0, 12, 200)
    times = 978_300_000 + random.permutation(200) * 60
    name = (
        (lambda prefix, v: [f"{prefix}{(x * 7) % 16:02d}" for x in v])
        if strings
        else (lambda _, v: (v * 7) % 16)
    )
    return pl.DataFrame(
        {"user_id": name("u", users), "item_id": name("i", items), "timestamp": times * factor},
        schema_overrides={"timestamp": pl.Int64},
    )


@pytest.mark.parametrize("strings", [False, True])
def test_rules_see_numbers_and_give_identifiers_back(strings):
    events = frame(strings)
    direct = histories.books(
        events["user_id"].to_numpy(), events["item_id"].to_numpy(), events["timestamp"].to_numpy()
    )
    packed = pack(events, histories.books)
    assert packed.item_ids.to_list() == direct.item_ids.tolist()
    assert packed.user_ids.to_list() == direct.user_ids.tolist()
    assert np.array_equal(packed.tokens, direct.tokens) and np.array_equal(packed.offsets, direct.offsets)


def test_windows_count_seconds_whatever_the_unit():
    seconds = pack(frame(), histories.books)
    milliseconds = pack(frame(factor=1000), histories.books)
    assert milliseconds.unit == "ms" and np.array_equal(seconds.seconds, milliseconds.seconds)


def test_only_keeps_token_numbers():
    packed = pack(frame(), histories.books)
    lengths = np.diff(packed.offsets)
    least = int(np.median(lengths)) + 1
    some = packed.only(least)
    assert len(some.user_ids) == (lengths >= least).sum() and some.item_ids.equals(packed.item_ids)
    assert len(some.frame()) == len(some.tokens) == lengths[lengths >= least].sum()


def write(folder, state="rechub", layout="nested", split=None, strings=True):
    packed = pack(frame(strings), histories.books)
    parts = windows.leave_last_out(packed.tokens, packed.seconds, packed.offsets, 5)
    split = split or {"name": "leave-one-out"}
    if split["name"] == "ordered":
        parts = windows.beauty(packed.tokens, packed.seconds, packed.offsets, 5)
    return (
        packed,
        parts,
        write_folder(folder, packed, parts, layout=layout, split=split, name="x", state=state),
    )


def test_the_packed_dataset_is_split_as_the_windows_are(tmp_path):
    """Beauty's windows are cut in order, inside a user: no later event of hers is trained on."""
    packed, parts, data = write(tmp_path, split={"name": "ordered"})
    items = np.array(data.item_ids)
    ids = np.array(packed.item_ids.to_list())
    for name, part in (("validation", "val"), ("test", "test")):
        held = items[data.tokens[data.queries[name]] - 1]
        assert sorted(held) == sorted(ids[packed.tokens[parts[part].targets] - 1])
    trained = set(np.flatnonzero(data.train_mask))
    for row in range(data.n_users):
        mine = range(data.offsets[row], data.offsets[row + 1])
        flags = [at in trained for at in mine]
        assert flags == sorted(flags, reverse=True)  # what is trained on comes first
    assert data.meta["targets"]["test"] == len(parts["test"])
    leave_one_out = make_dataset(packed, "x", None, [])
    assert data.fingerprint != leave_one_out.fingerprint


def test_an_ordinary_split_has_the_ordinary_fingerprint(tmp_path):
    """The packed dataset is the one that the same events would give anywhere."""
    packed, _, data = write(tmp_path)
    again = Dataset.from_tables(
        packed.frame(), pl.DataFrame({"item_id": packed.item_ids}), name="x", time_unit="s"
    )
    assert np.array_equal(again.tokens, data.tokens) and np.array_equal(again.train_mask, data.train_mask)
    assert again.fingerprint == data.fingerprint


def test_the_dataset_belongs_to_its_windows(tmp_path):
    write(tmp_path)
    assert is_current(tmp_path)
    (tmp_path / "val_data.pkl").write_bytes((tmp_path / "val_data.pkl").read_bytes() + b"x")
    assert not is_current(tmp_path)
    (tmp_path / "hllm.json").unlink()
    assert not is_current(tmp_path)
    (tmp_path / "test_data.pkl").unlink()
    with pytest.raises(ArtifactError, match=r"lacks test_data.pkl; .* preprocess_amazon_books.py"):
        open_folder(tmp_path, BOOKS)


def test_padding_of_books(tmp_path):
    packed, _, _ = write(tmp_path, layout="nested-pad")
    assert formats.read_vocab(tmp_path).item_ids == packed.item_ids.to_list()


@pytest.mark.parametrize("layout", ["nested", "flat-from-0"])
def test_vectors_go_out_and_come_back(tmp_path, layout):
    """Row = the folder's token on disk, row = the dataset's token in memory; they are ordered differently."""
    write(tmp_path, layout=layout, split={"name": "ordered"} if layout == "flat-from-0" else None)
    folder = open_folder(tmp_path, BEAUTY)
    vectors = np.random.default_rng(0).standard_normal((folder.data.n_catalogue + 1, 4)).astype(np.float32)
    vectors[0] = 0
    formats.write_text_map(
        tmp_path / "item_text_map.pkl", folder.text_map(dict.fromkeys(folder.data.item_ids, "t"))
    )
    folder.write_embeddings("m", vectors)
    back = folder.item_embeddings("m")
    assert np.array_equal(back.vectors, vectors) and back.has_text.sum() == folder.data.n_candidates
    assert not np.array_equal(folder.rows, np.arange(len(folder.rows)))
    assert back.spec["source"] == "file item_embeddings_m.pt"


def test_an_item_of_other_data_is_named(tmp_path):
    packed, _, data = write(tmp_path)
    vocab = formats.Vocab([*packed.item_ids.to_list(), "stranger"], "nested")
    with pytest.raises(ArtifactError, match="'stranger'"):
        token_rows(vocab, data)


def test_texts_are_attached_without_changing_what_is_held_out(tmp_path):
    packed, _, data = write(tmp_path, split={"name": "ordered"})
    folder = open_folder(tmp_path, MOVIELENS)
    items = pl.DataFrame({"item_id": [*packed.item_ids[:3], "new"], "title": ["a", "b", "c", "d"]})
    texted = folder.with_items(items, ["title"])
    assert texted.data.n_catalogue == data.n_candidates + 1 and texted.data.meta["text_fields"] == ["title"]
    assert np.array_equal(texted.data.train_mask, data.train_mask)
    assert all(np.array_equal(texted.data.queries[name], data.queries[name]) for name in data.queries)
