"""Texts cut into chunks and batches: each once, whatever is missing, and the next chunk tokenised beside the model."""

from __future__ import annotations

import threading
from itertools import chain
from typing import Any

import numpy as np
import pytest

from hllm.items.embed import embed
from hllm.items.encoders.text import LanguageModelEncoder
from hllm.items.store import batches
from hllm.items.store.batches import Chunks, chunks_of, planned_batches


class Slow:
    """An encoder whose first batch is done when the second chunk has been tokenised; keeps what it tokenised."""

    dim, budget = 2, None

    def __init__(self) -> None:
        self.tokenised: list[list[str]] = []
        self.threads: list[str] = []
        self.second = threading.Event()

    def prepare(self, texts: list[str]) -> np.ndarray:
        return self.take(texts)

    def tokenise(self, texts: list[str]) -> list[str]:
        self.tokenised.append(texts)
        self.threads.append(threading.current_thread().name)
        if len(self.tokenised) == 2:
            self.second.set()
        return texts

    def take(self, tokens: list[str]) -> np.ndarray:
        self.texts, self.truncated = tokens, np.zeros(len(tokens), dtype=bool)
        return np.array([len(text) for text in tokens])

    def encode(self, rows: np.ndarray) -> np.ndarray:
        assert self.second.wait(30), "the second chunk was not tokenised while the first was encoded"
        return np.zeros((len(rows), 2), dtype=np.float32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of some 40 characters."""
    monkeypatch.setattr(batches, "CHUNK", 40)


def test_chunks_hold_every_text_once_longest_first_and_grow() -> None:
    texts = ["x" * n for n in np.random.default_rng(0).integers(1, 200, 3000)]
    chunks = chunks_of(texts, batches.CHUNK >> 6)
    lengths = [[len(texts[i]) for i in rows] for rows in chunks]
    assert sorted(np.concatenate(chunks).tolist()) == list(range(3000))
    assert (np.diff(np.concatenate(lengths)) <= 0).all()
    sizes = [sum(part) for part in lengths]
    first = batches.CHUNK >> 6
    assert all(first * 2**i - 200 <= size <= first * 2**i for i, size in enumerate(sizes[:-1]))
    assert sizes[-1] <= 1.5 * first * 2 ** (len(sizes) - 1)


def test_chunks_of_little_and_of_much() -> None:
    assert [rows.tolist() for rows in chunks_of([], batches.CHUNK)] == [[]]
    assert [rows.tolist() for rows in chunks_of(["a", "bbb"], batches.CHUNK)] == [[1, 0]]
    long = ["x" * (2 * batches.CHUNK), "y" * (3 * batches.CHUNK), "z"]
    assert [rows.tolist() for rows in chunks_of(long, batches.CHUNK)] == [[1], [0, 2]]
    many = chunks_of(["x" * 1000] * 10_000, batches.CHUNK)
    assert len(many) == 10 and max(len(rows) for rows in many) <= 1.5 * batches.CHUNK / 1000


def test_the_next_chunk_is_tokenised_while_one_is_encoded(small: None) -> None:
    texts = [f"{'x' * 10}{i:02}" for i in range(12)]
    encoder = Slow()
    chunks = Chunks(encoder, texts, np.ones(12, dtype=bool))
    seen = []
    for rows in chunks:
        encoder.encode(rows[:1])
        seen.append([texts[i] for i in rows])
    assert seen == encoder.tokenised and len(seen) == 4 and sorted(chain(*seen)) == texts
    assert all(name.startswith("tokenise") for name in encoder.threads)
    assert chunks.lengths.tolist() == [12] * 12


def test_a_chunk_of_which_nothing_is_missing_is_not_tokenised(small: None) -> None:
    texts = [f"{'x' * 10}{i:02}" for i in range(12)]
    encoder = Slow()
    wanted = np.zeros(12, dtype=bool)
    wanted[4] = True
    assert [rows.tolist() for rows in Chunks(encoder, texts, wanted)] == [[3, 4, 5]]
    assert encoder.tokenised == [texts[3:6]]


def test_an_error_of_the_thread_is_the_callers(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Slow, texts: list[str]) -> list[str]:
        raise ValueError("no such token")

    monkeypatch.setattr(Slow, "tokenise", fails)
    with pytest.raises(ValueError, match="no such token"):
        list(Chunks(Slow(), ["x" * 12] * 12, np.ones(12, dtype=bool)))


def test_vectors_do_not_depend_on_the_chunks(llama, make_dataset, monkeypatch) -> None:
    titles = [f"Title {'long ' * (i % 7)}{i}" for i in range(60)]
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "progress": False, "batch_size": 4}
    whole = embed(make_dataset(titles, [None] * 60, name="whole"), str(llama), **options)
    monkeypatch.setattr(batches, "CHUNK", 500)
    taken = []
    take = LanguageModelEncoder.take
    monkeypatch.setattr(
        LanguageModelEncoder, "take", lambda self, t: taken.append(len(t.offsets)) or take(self, t)
    )
    cut = embed(make_dataset(titles, [None] * 60, name="cut"), str(llama), **options)
    assert len(taken) > 4  # a sample, then chunks
    np.testing.assert_allclose(cut.vectors, whole.vectors, atol=1e-5)
    for name in ("encoded", "tokens", "truncated"):
        assert cut.stats[name] == whole.stats[name]


def test_tfidf_sees_all_texts_at_once(make_dataset, monkeypatch) -> None:
    titles = [f"Title {'long ' * (i % 7)}{i}" for i in range(60)]
    options: dict[str, Any] = {"device": "cpu", "progress": False}
    whole = embed(make_dataset(titles, [None] * 60, name="whole"), "tfidf", **options)
    monkeypatch.setattr(batches, "CHUNK", 500)
    cut = embed(make_dataset(titles, [None] * 60, name="cut"), "tfidf", **options)
    np.testing.assert_array_equal(cut.vectors, whole.vectors)


def test_batches_of_a_budget_hold_every_text_once() -> None:
    lengths, wanted = np.array([5, 30, 7, 1, 9, 9]), np.ones(6, dtype=bool)
    batches = [rows.tolist() for rows in planned_batches(lengths, wanted, 64, budget=18)]
    assert batches == [[1], [4, 5], [2, 0, 3]]
    wanted[[1, 5]] = False
    assert [rows.tolist() for rows in planned_batches(lengths, wanted, 64, budget=18)] == [[4], [2, 0, 3]]
    assert [rows.tolist() for rows in planned_batches(lengths, wanted, 4)] == [[4, 2], [0, 3]]
