"""Vectors that nothing can be learned from are refused before training, by the item's id."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hllm.errors import DataError
from hllm.items.embed import embed
from hllm.items.sound import check_vectors
from hllm.pipeline import Recommender
from hllm.testing import world

SMALL = {"d_model": 8, "n_layers": 1, "n_heads": 2, "epochs": 1, "max_len": 8, "adapter_hidden": 8}


@pytest.mark.parametrize("value", [1e30, -1e30, np.nan, np.inf, 1e6])
@pytest.mark.parametrize("whiten", ["whiten", "center", "none"])
def test_case_e24_one_wrong_vector_is_named_before_training(
    tmp_path: Path, value: float, whiten: str
) -> None:
    data = world(20, 15, string_ids=True).save(tmp_path / "world")
    made = embed(data, "random", progress=False)
    vectors = made.vectors.copy()
    vectors[7] = vectors[7] * value
    rec = Recommender.from_preset("hllm-lite", item_llm="random", whiten=whiten, **_settings(whiten))
    run = tmp_path / f"run-{whiten}"
    with pytest.raises(DataError, match=r"the vector of item '006' "):
        rec.fit(data, device="cpu", progress=False, embeddings=replace(made, vectors=vectors), out=run)
    assert not (run / "checkpoints").exists() and not (run / "config.json").exists()


def _settings(whiten: str) -> dict[str, int]:
    return SMALL | ({"whiten_rank": 8} if whiten == "whiten" else {})


def test_case_e24_vectors_of_another_catalogue_are_refused(tmp_path: Path) -> None:
    made = embed(world(20, 15).save(tmp_path / "world"), "random", progress=False)
    rec = Recommender.from_preset("hllm-lite", item_llm="random", **_settings("whiten"))
    with pytest.raises(DataError, match=r"where the dataset has 23 items"):
        rec.fit(world(20, 20), device="cpu", progress=False, embeddings=made)


def name_of(token: int) -> int:
    return token - 1


def test_vectors_of_different_length_are_fine() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(101, 4)).astype(np.float32) * rng.lognormal(0, 2, (101, 1)).astype(np.float32)
    has_text = np.arange(101) > 3
    vectors[~has_text] = np.nan  # rows that nobody reads
    check_vectors(vectors, has_text, 100, name_of)
    check_vectors(vectors * 1e9, has_text, 100, name_of)
    check_vectors(np.zeros((101, 4), np.float32), has_text, 100, name_of)
    with pytest.raises(DataError, match=r"item 3 \(and those of 96 more items\) holds numbers beyond 1e\+15"):
        check_vectors(np.abs(vectors.astype(np.float64)) * 0 + 1e30, has_text, 100, name_of)
