import numpy as np
import torch

from hllm.items.encoders.controls import (
    DIM,
    RandomEncoder,
    TfidfEncoder,
    random_vector,
    tfidf_matrix,
    truncated_svd,
)

TEXTS = ["title: Toy Story genres: Animation", "title: Toy Soldiers genres: War", "title: Heat genres: Crime"]


def rows(n):
    return np.arange(n)


def test_tfidf_against_the_formula():
    dense = tfidf_matrix(["a b b", "A c", "C a"]).to_dense().numpy()
    idf = {"a": np.log(1 + 3 / 3), "b": np.log(1 + 3 / 1), "c": np.log(1 + 3 / 2)}
    expected = np.array(
        [[idf["a"], (1 + np.log(2)) * idf["b"], 0], [idf["a"], 0, idf["c"]], [idf["a"], 0, idf["c"]]]
    )
    np.testing.assert_allclose(dense, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-12)


def test_truncated_svd_against_the_exact_one():
    generator = np.random.default_rng(0)
    # A spectrum that falls slowly, as that of text does, is the hard case.
    dense = generator.standard_normal((120, 80)) @ np.diag(0.97 ** np.arange(80))
    ours = truncated_svd(torch.from_numpy(dense).to_sparse_csr(), 10).numpy()
    u, s, _ = np.linalg.svd(dense, full_matrices=False)
    best = u[:, :10] * s[:10]
    np.testing.assert_allclose(ours @ ours.T, best @ best.T, atol=1e-3)


def test_tfidf_keeps_all_cosines_where_the_rank_allows():
    encoder = TfidfEncoder()
    encoder.prepare(TEXTS)
    assert encoder.dim == 3
    vectors = encoder.encode(rows(3))
    exact = tfidf_matrix(TEXTS).to_dense().numpy()
    np.testing.assert_allclose(vectors @ vectors.T, exact @ exact.T, atol=1e-6)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2]  # a shared word


def test_tfidf_is_deterministic_and_no_wider_than_it_must_be():
    texts = [f"title: word{i % 40} other{i % 17} number{i}" for i in range(400)]
    first, second = TfidfEncoder(), TfidfEncoder()
    torch.manual_seed(5)
    first.prepare(texts)
    torch.manual_seed(6)
    second.prepare(texts)
    assert first.encode(rows(400)).shape == (400, DIM)
    np.testing.assert_array_equal(first.encode(rows(400)), second.encode(rows(400)))


def test_tfidf_of_texts_without_words():
    encoder = TfidfEncoder()
    encoder.prepare(["!!!", "???"])
    assert np.isfinite(encoder.encode(rows(2))).all()


def test_random_vectors_depend_on_the_text_alone():
    encoder = RandomEncoder()
    encoder.prepare(["b", "a", "b"])
    vectors = encoder.encode(np.array([2, 1, 0]))
    np.testing.assert_array_equal(vectors, np.stack([random_vector(t) for t in ("b", "a", "b")]))
    assert vectors.dtype == np.float32
    # Fixed for good: a stored vector must be what another machine would draw.
    np.testing.assert_allclose(random_vector("Up")[:3], [-0.0866485, -0.3260252, 1.6117260], atol=1e-6)
    many = np.stack([random_vector(str(i)) for i in range(200)])
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02
