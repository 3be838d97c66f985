"""torch-rechub's folders: vocabularies, text maps, embeddings in every layout, streamed windows, models."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from hllm.compat.rechub import windows
from hllm.errors import ArtifactError, DataError
from hllm.formats import rechub

IDS = [10, 30, 31, 50]
TABLE = np.arange(10, dtype=np.float32).reshape(5, 2)


def test_vocabularies_of_both_states(tmp_path):
    rechub.write_vocab(tmp_path, np.array(IDS))
    raw = pickle.loads((tmp_path / "vocab.pkl").read_bytes())
    assert raw == {"item_to_idx": {10: 1, 30: 2, 31: 3, 50: 4}, "idx_to_item": {1: 10, 2: 30, 3: 31, 4: 50}}
    assert rechub.read_vocab(tmp_path) == rechub.Vocab(IDS, "nested")
    rechub.write_vocab(tmp_path, IDS, "flat")
    assert pickle.loads((tmp_path / "vocab.pkl").read_bytes()) == {10: 1, 30: 2, 31: 3, 50: 4, 0: 0}
    assert rechub.read_vocab(tmp_path) == rechub.Vocab(IDS, "flat")
    rechub.write_vocab(tmp_path, ["007", "7"], "flat-from-0")
    assert pickle.loads((tmp_path / "vocab.pkl").read_bytes()) == {"007": 0, "7": 1}
    assert rechub.read_vocab(tmp_path) == rechub.Vocab(["007", "7"], "flat-from-0")
    assert rechub.read_vocab(tmp_path).shift == 1


def test_vocabularies_as_their_scripts_pickle_them(tmp_path):
    """Keys are numpy integers; the Books vocabulary names its padding."""
    theirs = {np.int64(7): 2, np.int64(3): 1, 0: 0}
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(theirs))
    found = rechub.read_vocab(tmp_path)
    assert found.item_ids == [3, 7] and type(found.item_ids[0]) is int
    books = {"item_to_idx": {"B1": 1, "B0": 2, "<PAD>": 0}, "idx_to_item": {1: "B1", 2: "B0", 0: "<PAD>"}}
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(books))
    assert rechub.read_vocab(tmp_path) == rechub.Vocab(["B1", "B0"], "nested")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "without items"),
        ([1], "holds a list"),
        ({5: 1, 6: 3, 0: 0}, "not the consecutive numbers from 1"),
    ],
)
def test_vocabularies_that_are_none(tmp_path, value, message):
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(ArtifactError, match=message):
        rechub.read_vocab(tmp_path)


def test_vocabulary_layouts_are_checked(tmp_path):
    with pytest.raises(DataError, match="item id 0"):
        rechub.write_vocab(tmp_path, [0, 1], "flat")
    with pytest.raises(DataError, match=r"unknown vocab layout 'flatt' .*'flat'"):
        rechub.write_vocab(tmp_path, [1], "flatt")


def test_text_maps(tmp_path):
    with pytest.raises(ArtifactError, match=r"neither movie_text_map\.pkl nor item_text_map\.pkl"):
        rechub.read_text_map(tmp_path)
    rechub.write_text_map(tmp_path / "item_text_map.pkl", {"B2": "two", "B1": "one"})
    assert list(rechub.read_text_map(tmp_path).items()) == [("B2", "two"), ("B1", "one")]
    (tmp_path / "movie_text_map.pkl").write_bytes(pickle.dumps(["text"]))
    with pytest.raises(ArtifactError, match="holds a list"):
        rechub.read_text_map(tmp_path)


def test_embeddings_by_token(tmp_path):
    rechub.write_vocab(tmp_path, IDS)
    path = rechub.write_embeddings(tmp_path, "Org/smollm2-135m", TABLE)
    assert path.name == "item_embeddings_smollm2-135m.pt"
    theirs = torch.load(path, weights_only=True)
    assert theirs.dtype == torch.float32 and not theirs[0].any() and TABLE[0].any()
    found = rechub.read_embeddings(tmp_path, "smollm2-135m")
    assert torch.equal(found, theirs) and torch.equal(found[1:], torch.from_numpy(TABLE)[1:])


@pytest.mark.parametrize("layout", ["flat", "nested"])
@pytest.mark.parametrize("highest", [50, 60])
def test_embeddings_by_raw_movie_id_are_indexed_again(tmp_path, layout, highest):
    """Row = movie id, up to the highest of the vocabulary or, where it is there, of the text map."""
    rechub.write_vocab(tmp_path, IDS, layout)
    if highest == 60:
        rechub.write_text_map(tmp_path / "movie_text_map.pkl", {**dict.fromkeys(IDS, "x"), 60: "unrated"})
    raw = torch.arange(highest + 1.0).view(-1, 1).repeat(1, 2)
    torch.save(raw, tmp_path / "item_embeddings_tinyllama.pt")
    assert rechub.read_embeddings(tmp_path, "tinyllama")[:, 0].tolist() == [0, *IDS]


@pytest.mark.parametrize("extra", [[], ["B9"]])
def test_embeddings_in_the_order_of_the_text_map(tmp_path, extra):
    """Books before 0.9: row j is the j-th key, no padding row; with one extra key the count is also V."""
    rechub.write_vocab(tmp_path, ["B1", "B2", "B3"])
    keys = ["B3", "B1", *extra] if extra else ["B3", "B1"]
    rechub.write_text_map(tmp_path / "item_text_map.pkl", dict.fromkeys([*keys, "B8"], "x"))
    torch.save(torch.arange(1.0, len(keys) + 2).view(-1, 1), tmp_path / "item_embeddings_m.pt")
    assert rechub.read_embeddings(tmp_path, "m")[:, 0].tolist() == [0, 2, 0, 1]  # B2 has no text


def test_embeddings_with_as_many_texts_as_tokens_but_a_padding_row(tmp_path):
    rechub.write_vocab(tmp_path, ["B1", "B2"])
    rechub.write_text_map(tmp_path / "item_text_map.pkl", dict.fromkeys(["B2", "B1", "B9"], "x"))
    torch.save(torch.tensor([[0.0], [5.0], [6.0]]), tmp_path / "item_embeddings_m.pt")
    assert rechub.read_embeddings(tmp_path, "m")[:, 0].tolist() == [0, 5, 6]


def test_embeddings_of_other_data_are_refused(tmp_path):
    rechub.write_vocab(tmp_path, IDS)
    torch.save(torch.zeros(8, 2), tmp_path / "item_embeddings_m.pt")
    with pytest.raises(ArtifactError, match="8 rows, but the vocabulary has 4 items"):
        rechub.read_embeddings(tmp_path, "m")
    rechub.write_text_map(tmp_path / "movie_text_map.pkl", {str(i): "x" for i in range(8)})
    with pytest.raises(DataError, match=r"no item of vocab\.pkl \(int, as 10\) .* \(str, as '0'\)"):
        rechub.read_embeddings(tmp_path, "m")
    with pytest.raises(ArtifactError, match=r"item_embeddings_none\.pt not found"):
        rechub.read_embeddings(tmp_path, "none")


def histories(n_users: int, length: int):
    tokens = np.tile(np.arange(1, length + 1, dtype=np.int32), n_users)
    return tokens, np.arange(n_users * length) * 3600, np.arange(n_users + 1) * length


def test_windows_are_what_pickle_would_have_written(tmp_path):
    for source in (
        windows.leave_last_out(*histories(3, 9), 4)["train"],
        windows.books(*histories(3, 9))["train"],
    ):
        rechub.write_windows(tmp_path, "train", source)
        rows = source.rows(np.arange(len(source)))
        with open(tmp_path / "train_data.pkl", "rb") as file:
            loaded = pickle.load(file)
        again = rechub.read_windows(tmp_path, "train")
        assert list(loaded) == list(rows) == list(again)
        for name, expected in rows.items():
            for found in (loaded[name], again[name]):
                assert type(found) is type(expected) and np.array_equal(
                    np.asarray(found, dtype=object), np.asarray(expected, dtype=object)
                )
                if isinstance(found, np.ndarray):
                    assert found.dtype == expected.dtype and found.flags.writeable


def test_ragged_windows_in_several_pieces(tmp_path):
    """More windows than fit one piece, and than pickle appends at once."""
    source = windows.books(*histories(500, 16))["train"]
    assert len(source) > 4096
    rechub.write_windows(tmp_path, "train", source)
    loaded = pickle.loads((tmp_path / "train_data.pkl").read_bytes())
    assert loaded == source.rows(np.arange(len(source)))


def test_writing_windows_stays_flat_in_memory(tmp_path):
    def peak(n_users: int) -> tuple[int, int]:
        source = windows.leave_last_out(*histories(n_users, 40), 200)["train"]
        tracemalloc.start()
        rechub.write_windows(tmp_path, "train", source)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, (tmp_path / "train_data.pkl").stat().st_size

    (small, small_file), (large, large_file) = peak(300), peak(1500)
    assert large_file > 4.9 * small_file > 300 * 37 * 200 * 16
    assert large < 1.1 * small < large_file / 2


def test_single_files_hold_all_splits_end_to_end(tmp_path):
    parts = list(windows.leave_last_out(*histories(2, 6), 5).values())
    rechub.write_single_files(tmp_path, parts)
    for name in windows.COLUMNS:
        loaded = pickle.loads((tmp_path / f"{name}.pkl").read_bytes())
        assert np.array_equal(loaded, np.concatenate([part.arrays()[name] for part in parts]))
    mixed = [parts[0], windows.leave_last_out(*histories(2, 6), 4)["val"]]
    with pytest.raises(DataError, match="different widths"):
        rechub.write_single_files(tmp_path, mixed)


def test_windows_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"unknown split 'tests' .*'test'"):
        rechub.read_windows(tmp_path, "tests")
    for value, message in (
        ([1], "holds a list"),
        ({"targets": []}, "dict without seq_tokens, seq_positions"),
    ):
        (tmp_path / "test_data.pkl").write_bytes(pickle.dumps(value))
        with pytest.raises(ArtifactError, match=message):
            rechub.read_windows(tmp_path, "test")


def test_models(tmp_path):
    rechub.write_model(tmp_path / "model.pth", {"module.a": torch.ones(2, requires_grad=True)})
    assert list(torch.load(tmp_path / "model.pth", weights_only=True)) == ["module.a"]
    assert torch.equal(rechub.read_model(tmp_path / "model.pth")["a"], torch.ones(2))
    torch.save([torch.ones(1)], tmp_path / "model.pth")
    with pytest.raises(ArtifactError, match="holds a list, not"):
        rechub.read_model(tmp_path / "model.pth")
