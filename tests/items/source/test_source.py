"""Item vectors: what text and ids each give, what items without them get, and items added later."""

from __future__ import annotations

import pytest
import torch

from hllm.errors import ArtifactError
from hllm.items.config import ItemsConfig
from hllm.items.source import base
from hllm.items.source.build import empty_source, make_source
from hllm.items.source.ids import Ids
from hllm.items.source.joined import Concat, Sum
from hllm.items.source.text_table import TextTable
from hllm.testing import TinyLiveText, check_source

N, D, RAW = 6, 8, 5
TRAINED = torch.tensor([False, True, True, False, True, False, True])
HAS_TEXT = torch.tensor([False, True, False, True, True, True, False])


def make(text: bool = True, id_embedding: bool = True) -> Sum:
    torch.manual_seed(0)
    settings = ItemsConfig(
        item_llm="tfidf" if text else None,
        whiten="center",
        whiten_rank=4,
        adapter_hidden=16,
        id_embedding=id_embedding,
    )
    raw = torch.randn(N + 1, RAW)
    source = make_source(settings, D, TRAINED, raw if text else None, HAS_TEXT if text else None)
    if text:
        torch.nn.init.normal_(source.get_parameter("parts.text.no_text"))
    return source


def text_of(source: Sum) -> TextTable:
    part = source.parts["text"]
    assert isinstance(part, TextTable)
    return part


def adapted(source: Sum, tokens: torch.Tensor) -> torch.Tensor:
    adapter = text_of(source).adapter
    assert adapter is not None
    return adapter(text_of(source).table[tokens])


def test_vector_is_adapted_text_plus_id() -> None:
    source = make()
    tokens = torch.tensor([4, 1, 4])
    expected = adapted(source, tokens) + source.get_parameter("parts.ids.weight")[tokens]
    torch.testing.assert_close(source.encode(tokens), expected)
    assert source.n_items == N and source.width == D


def test_without_a_training_event_the_id_vector_is_zero() -> None:
    """protocol.md, "Negatives": text alone speaks for such items; no view of a step holds them."""
    source = make()
    tokens = torch.tensor([3, 5])
    torch.testing.assert_close(source.encode(tokens), adapted(source, tokens))
    ids = make(text=False)
    assert not ids.encode(torch.tensor([0, 3, 5])).any()
    assert bool(ids.encode(torch.tensor([1, 2, 4, 6])).any(1).all())


def test_an_item_without_text_gets_the_learned_vector() -> None:
    source = make(id_embedding=False)
    no_text = source.get_parameter("parts.text.no_text")
    vectors = source.encode(torch.tensor([2, 6, 1]))
    assert torch.equal(vectors[0], no_text) and torch.equal(vectors[1], no_text)
    assert not torch.equal(vectors[2], no_text)
    vectors.sum().backward()
    torch.testing.assert_close(no_text.grad, torch.full((D,), 2.0))


def test_tiles_cover_every_token_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "TILE", 3)
    monkeypatch.setattr("hllm.items.source.joined.TILE", 3)
    source = make()
    tiles = list(source.tiles())
    assert [len(vectors) for vectors in tiles] == [3, 3, 1]
    assert not tiles[0].requires_grad
    torch.testing.assert_close(torch.cat(tiles), source.encode(torch.arange(N + 1)))


def test_a_table_of_ids_alone_is_their_weight() -> None:
    """A catalogue of learned vectors is not held twice while it is ranked; anything else is laid out tile by tile."""
    ids = Ids(7, 3, torch.arange(8) > 0)
    assert Sum({"ids": ids}).every().data_ptr() == ids.weight.data_ptr()
    both = Sum({"ids": ids, "more": Ids(7, 3, torch.arange(8) > 0)})
    assert torch.equal(both.every(), both.encode(torch.arange(8)))
    assert not both.every().requires_grad and not ids.every().requires_grad


def test_added_items_are_made_as_the_others_were() -> None:
    source = make()
    before = source.encode(torch.arange(N + 1))
    raw, has_text = torch.randn(3, RAW), torch.tensor([True, False, True])
    source.extend(raw, has_text)
    assert source.n_items == N + 3
    after = source.encode(torch.arange(N + 4))
    assert torch.equal(after[: N + 1], before)
    text = text_of(source)
    assert text.adapter is not None and text.whitening is not None
    expected = text.adapter(text.whitening.transform(raw, has_text))
    torch.testing.assert_close(after[[N + 1, N + 3]], expected[[0, 2]])
    torch.testing.assert_close(after[N + 2], text.no_text)
    source.extend(raw[:1], has_text[:1])
    assert torch.equal(source.encode(torch.tensor([N + 4])), source.encode(torch.tensor([N + 1])))


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("id_embedding", [True, False])
def test_a_source_is_rebuilt_from_its_specification(text: bool, id_embedding: bool) -> None:
    """The whitening statistics are part of the weights, and nothing is guessed from names or shapes."""
    if not (text or id_embedding):
        return
    source = make(text, id_embedding)
    other = empty_source(source.spec())
    other.load_state_dict(source.state_dict())
    tokens = torch.arange(N + 1)
    assert torch.equal(other.encode(tokens), source.encode(tokens))
    if text:
        raw, has_text = torch.randn(2, RAW), torch.tensor([True, True])
        source.extend(raw, has_text)
        other.extend(raw, has_text)
        assert torch.equal(other.encode(torch.arange(N + 3)), source.encode(torch.arange(N + 3)))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ArtifactError, match="'oracle'"):
        empty_source({"kind": "oracle"})


def test_a_linear_layer_inside_a_source_keeps_its_own_start() -> None:
    """Whoever builds a source initialises it: nothing above it starts it again."""
    from hllm.config import load_config
    from hllm.runs.build import with_source

    source = TinyLiveText(N, D)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    with_source(source, load_config("sasrec", overrides={"d_model": D, "n_heads": 2, "n_layers": 1}))
    for name, value in source.state_dict().items():
        assert torch.equal(value, before[name]), name


# ---------------------------------------------------------------------- the contract

SOURCES = {
    "text and ids": lambda: make(),
    "text": lambda: make(id_embedding=False),
    "ids": lambda: make(text=False),
    "live": lambda: TinyLiveText(N, D),
    "live and ids": lambda: Sum({"text": TinyLiveText(N, D), "ids": Ids(N, D, TRAINED)}),
    "side by side": lambda: Concat({"text": TinyLiveText(N, D), "ids": Ids(N, 3, TRAINED)}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_contract(name: str) -> None:
    torch.manual_seed(0)
    check_source(SOURCES[name]().double())


def test_sums_need_one_width() -> None:
    with pytest.raises(ValueError, match=r"\[3, 8\].*Concat"):
        Sum({"a": Ids(N, 8), "b": Ids(N, 3)})


@pytest.mark.parametrize("joined", [False, True])
def test_cached_gradients_are_the_plain_ones(joined: bool) -> None:
    """Chunks without a graph, then again with the saved random state: dropout on, float64, to 1e-9."""
    tokens = torch.arange(1, 24)
    results = []
    for cached in (False, True):
        torch.manual_seed(0)
        live = TinyLiveText(23, D, chunk=5, cached=cached)
        source = (Sum({"text": live, "ids": Ids(23, D, torch.arange(24) > 0)}) if joined else live).double()
        if not cached:
            live.lease = lambda tokens, live=live: in_chunks(live, tokens)  # type: ignore[method-assign]
        torch.manual_seed(5)
        lease = source.lease(tokens)
        (lease.vectors.sin() * torch.arange(D)).sum().backward()
        lease.backward()
        grads = {name: p.grad for name, p in source.named_parameters()}
        results.append((lease.vectors.detach(), grads, torch.rand(1)))
        assert live.encoded == len(tokens) * (2 if cached else 1)
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def in_chunks(live: TinyLiveText, tokens: torch.Tensor) -> base.Lease:
    """One plain graph that draws dropout chunk by chunk, as the cached form does."""
    plain = torch.cat([live.encode(part) for part in tokens.split(live.chunk)])
    return base.Lease(plain.detach().requires_grad_(), plain.backward)
