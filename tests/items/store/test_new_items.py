"""Items that come later get the vectors they would have had in the catalogue."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest

from hllm.errors import ArtifactError, ConfigError, DataError, FetchError
from hllm.items.embed import embed
from hllm.items.store.new_items import encode_new_items


@pytest.fixture(autouse=True)
def float32(monkeypatch) -> None:
    """No measurement: the vectors of other batches are the same to rounding, which in bf16 is coarse."""
    monkeypatch.setattr("hllm.items.resolve.auto_precision", lambda device, folder: "fp32")


def rows(dataset, tokens) -> pl.DataFrame:
    return dataset.items[[t - 1 for t in tokens]]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_equal_to_the_catalogues_own(make_dataset, llama, pooling) -> None:
    dataset = make_dataset()
    made = embed(dataset, str(llama), pooling, "About: ", ["genres", "title"], "cpu", progress=False)
    tokens = [6, 1, 5, 3]
    vectors, has_text = encode_new_items(made.spec, rows(dataset, tokens), "cpu", batch_size=2)
    assert vectors.dtype == np.float32 and has_text.all()
    np.testing.assert_allclose(vectors, made.vectors[tokens], atol=1e-5)


def test_items_without_text_are_marked_and_zero(make_dataset, llama) -> None:
    made = embed(make_dataset(), str(llama), device="cpu", progress=False)
    frame = pl.DataFrame({"item_id": [77, 78], "title": [None, "Ran"], "genres": [None, "War"]})
    vectors, has_text = encode_new_items(made.spec, frame, "cpu")
    assert has_text.tolist() == [False, True]
    assert not vectors[0].any()
    np.testing.assert_allclose(vectors[1], made.vectors[8], atol=1e-5)
    vectors, has_text = encode_new_items(made.spec, frame[:1], "cpu")  # no model is loaded for these
    assert vectors.shape == (1, 32) and not has_text.any()


def test_the_random_control_knows_equal_texts(make_dataset) -> None:
    dataset = make_dataset()
    made = embed(dataset, "random", progress=False)
    vectors, _ = encode_new_items(made.spec, rows(dataset, [3, 7]), "cpu")
    assert np.array_equal(vectors, made.vectors[[3, 7]])
    assert np.array_equal(vectors[0], vectors[1])


def test_tfidf_belongs_to_one_catalogue(make_dataset) -> None:
    dataset = make_dataset()
    made = embed(dataset, "tfidf", progress=False)
    with pytest.raises(ConfigError, match="language model, for example item_llm=smollm2-135m"):
        encode_new_items(made.spec, rows(dataset, [1]), "cpu")


def test_a_missing_text_column_is_named(make_dataset, llama) -> None:
    made = embed(make_dataset(), str(llama), device="cpu", progress=False)
    with pytest.raises(DataError, match="genres"):
        encode_new_items(made.spec, pl.DataFrame({"item_id": [1], "title": ["Up"]}), "cpu")


def test_vectors_that_are_not_finite_are_refused(make_dataset, llama, monkeypatch) -> None:
    made = embed(make_dataset(), str(llama), device="cpu", progress=False)

    class Overflowing:
        budget = None

        def prepare(self, texts):
            return np.ones(len(texts), dtype=np.int64)

        def encode(self, rows):
            return np.full((len(rows), 32), np.nan, dtype=np.float32)

    monkeypatch.setattr("hllm.items.encoders.make.make_encoder", lambda *_: Overflowing())
    with pytest.raises(
        DataError, match="fp32 gives a vector with NaN or infinity for the new item 'title: a'"
    ):
        encode_new_items(
            made.spec | {"precision": "fp32"}, pl.DataFrame({"title": ["a"], "genres": [None]}), "cpu"
        )


def test_other_weights_under_the_same_name_are_refused(make_dataset, save_model, tmp_path) -> None:
    folder = save_model(tmp_path / "model")
    made = embed(make_dataset(), str(folder), device="cpu", progress=False)
    save_model(folder, seed=1)
    with pytest.raises(ArtifactError, match="other weights"):
        encode_new_items(made.spec, pl.DataFrame({"title": ["a"], "genres": ["b"]}), "cpu")


def test_a_model_that_is_gone_is_named(make_dataset, save_model, tmp_path) -> None:
    folder = save_model(tmp_path / "gone")
    made = embed(make_dataset(), str(folder), device="cpu", progress=False)
    shutil.rmtree(folder)
    with pytest.raises((FetchError, ConfigError), match="gone"):
        encode_new_items(made.spec, pl.DataFrame({"title": ["a"], "genres": ["b"]}), "cpu")
