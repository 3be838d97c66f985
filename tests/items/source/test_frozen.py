"""Item vectors: what text and ids each give, what items without them get, and items added later."""

from __future__ import annotations

import pytest
import torch

from hllm.items.source import frozen as module
from hllm.items.source.frozen import FrozenItemSource
from hllm.items.source.whitening import Whitening

N, D, RAW = 6, 8, 5
TRAINED = torch.tensor([False, True, True, False, True, False, True])
HAS_TEXT = torch.tensor([False, True, False, True, True, True, False])


def make(text: bool = True, id_embedding: bool = True) -> FrozenItemSource:
    torch.manual_seed(0)
    if not text:
        return FrozenItemSource(TRAINED, D)
    raw = torch.randn(N + 1, RAW)
    whitening = Whitening.fit(raw[TRAINED & HAS_TEXT], "center", 4)
    source = FrozenItemSource(
        TRAINED, D, whitening.transform(raw, HAS_TEXT), HAS_TEXT, whitening, 16, id_embedding
    )
    torch.nn.init.normal_(source.no_text)
    return source


def test_vector_is_adapted_text_plus_id() -> None:
    source = make()
    tokens = torch.tensor([4, 1, 4])
    expected = source.adapter(source.text[tokens]) + source.id_embedding.weight[tokens]
    torch.testing.assert_close(source.encode(tokens), expected)
    assert source.n_items == N


def test_without_a_training_event_the_id_vector_is_zero() -> None:
    """protocol.md, "Negatives": text alone speaks for such items, and they get no gradient."""
    source = make()
    tokens = torch.tensor([3, 5])
    torch.testing.assert_close(source.encode(tokens), source.adapter(source.text[tokens]))
    source.encode(torch.arange(N + 1)).sum().backward()
    gradient = source.id_embedding.weight.grad
    assert gradient is not None
    assert torch.equal(gradient.any(1), TRAINED)
    ids = make(text=False)
    assert not ids.encode(torch.tensor([0, 3, 5])).any()
    assert bool(ids.encode(torch.tensor([1, 2, 4, 6])).any(1).all())


def test_an_item_without_text_gets_the_learned_vector() -> None:
    source = make(id_embedding=False)
    vectors = source.encode(torch.tensor([2, 6, 1]))
    assert torch.equal(vectors[0], source.no_text) and torch.equal(vectors[1], source.no_text)
    assert not torch.equal(vectors[2], source.no_text)
    vectors.sum().backward()
    torch.testing.assert_close(source.no_text.grad, torch.full((D,), 2.0))
    both = make().encode(torch.tensor([2]))
    torch.testing.assert_close(both[0], make().no_text + make().id_embedding.weight[2])


def test_tiles_cover_every_token_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", 3)
    source = make()
    tiles = list(source.tiles())
    assert [len(tokens) for tokens, _ in tiles] == [3, 3, 1]
    assert torch.equal(torch.cat([tokens for tokens, _ in tiles]), torch.arange(N + 1))
    vectors = torch.cat([v for _, v in tiles])
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors, source.encode(torch.arange(N + 1)))
    ((tokens, vectors),) = source.tiles(torch.tensor([5, 2]), grad=True)
    assert tokens.tolist() == [5, 2] and vectors.requires_grad


def test_rows_of_trained_items() -> None:
    source = make()
    assert source.trained_tokens.tolist() == [1, 2, 4, 6]
    assert source.trained_rows[source.trained_tokens].tolist() == [0, 1, 2, 3]


def test_added_items_are_made_as_the_others_were() -> None:
    source = make()
    before = source.encode(torch.arange(N + 1))
    raw, has_text = torch.randn(3, RAW), torch.tensor([True, False, True])
    source.extend(raw, has_text)
    assert source.n_items == N + 3
    after = source.encode(torch.arange(N + 4))
    assert torch.equal(after[: N + 1], before)
    expected = source.adapter(source.whitening.transform(raw, has_text))
    torch.testing.assert_close(after[[N + 1, N + 3]], expected[[0, 2]])
    torch.testing.assert_close(after[N + 2], source.no_text)
    assert source.trained_tokens.tolist() == [1, 2, 4, 6]
    assert source.id_embedding.weight.shape == (N + 4, D)
    source.extend(raw[:1], has_text[:1])
    assert torch.equal(source.encode(torch.tensor([N + 4])), source.encode(torch.tensor([N + 1])))


def test_what_is_saved_is_enough_to_extend_again() -> None:
    """The whitening statistics are part of the weights."""
    state = make().state_dict()
    assert state["whitening.mean"].dtype == state["whitening.basis"].dtype == torch.float64
    assert state["whitening.mean"].shape == (RAW,)
    assert {"trained", "text", "has_text", "no_text"} <= set(state)
