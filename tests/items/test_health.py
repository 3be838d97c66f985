"""The health of item embeddings, on vectors whose health is known."""

import dataclasses

import numpy as np
import pytest

from hllm.items.embeddings import ItemEmbeddings
from hllm.items.health import check, effective_rank, neighbours


def embeddings(rows: np.ndarray, without: int = 0, truncated: int = 0) -> ItemEmbeddings:
    empty = np.zeros((1, rows.shape[1]))
    vectors = np.concatenate([empty, rows, np.repeat(empty, without, 0)]).astype(np.float32)
    has = np.array([False] + [True] * len(rows) + [False] * without)
    return ItemEmbeddings(vectors, has, {}, {"truncated": truncated})


def rows(n: int = 300, d: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def test_effective_rank_counts_equal_directions() -> None:
    turned = np.linalg.qr(rows(16))[0]
    axes = np.concatenate([np.eye(16)[:4], -np.eye(16)[:4]])  # centred, four directions alike
    assert effective_rank(axes @ turned) == pytest.approx(4)
    assert effective_rank(np.ones((5, 3))) == effective_rank(np.zeros((0, 3))) == 0
    assert effective_rank(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(1)


def test_vectors_in_good_health_draw_no_advice() -> None:
    found = check(embeddings(rows()))
    assert (found.items, found.without_text, found.identical, found.near_duplicates) == (300, 0, 0, 0)
    assert abs(found.mean_cosine) < 0.05 and found.effective_rank > 14
    assert found.advice() == ["nothing stands out"]


def test_each_fault_is_counted_and_told() -> None:
    base = rows()
    shared = check(embeddings(base + 10))
    assert shared.mean_cosine > 0.9 and shared.centred_cosine < 0.3
    assert "share one direction" in shared.advice()[0]
    base[:40], base[40:60] = base[100], base[101] + 1e-4 * rows(20)
    found = check(embeddings(base, without=30, truncated=90))
    assert found.identical == 41
    assert found.near_duplicates == pytest.approx(21 / 300)
    assert (found.without_text, found.truncated) == (30, 90)
    told = " ".join(found.advice())
    for words in ("the same text", "nearly alike", "are cut", "no text"):
        assert words in told
    assert "few directions" in " ".join(dataclasses.replace(found, dim=900, effective_rank=3.0).advice())


def test_vectors_of_others_get_advice_of_their_own() -> None:
    bad = rows()
    bad[0] *= 1e7
    made = embeddings(bad)
    assert check(made).outlying == 1 and "training refuses them" in check(made).advice()[0]
    flat = embeddings(np.outer(rows(300, 1), np.ones(16)), without=30)
    flat.spec["model"] = "vectors:mine"
    told = " ".join(check(flat).advice())
    for words in ("few directions", "another model, tell them apart", "have no vector"):
        assert words in told
    assert "--" not in told  # no option of an encoding that was not made here


def test_neighbours_are_the_nearest_of_centred_vectors() -> None:
    base = rows(6, 3)
    base[4] = base[1] + 0.01
    made = embeddings(base)
    assert neighbours(made, [2, 5], 1) == [[5], [2]]
    assert len(neighbours(made, [1], 99)[0]) == 5
