"""From data to a fresh network: what is fitted on what, and the shapes of a saved one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import torch

from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.errors import DataError
from hllm.items.embeddings import ItemEmbeddings
from hllm.items.source.build import empty_source
from hllm.items.source.whitening import Whitening
from hllm.runs.build import build_network, with_source
from hllm.testing import world


def embeddings_of(data: Dataset, seed: int = 0) -> ItemEmbeddings:
    rng = np.random.default_rng(seed)
    has_text = rng.random(data.n_catalogue + 1) < 0.8
    has_text[0] = False
    vectors = rng.standard_normal((data.n_catalogue + 1, 12)).astype(np.float32) * has_text[:, None]
    return ItemEmbeddings(vectors, has_text, {})


@pytest.fixture
def config() -> Config:
    return load_config(
        "demo", overrides={"d_model": 16, "n_layers": 1, "whiten_rank": 6, "adapter_hidden": 8}
    )


def test_whitening_is_fitted_on_training_items_with_text_alone(config: Config) -> None:
    """Held-out and catalogue-only items, and the padding row, change no fitted statistic."""
    data = world(n_users=30, split="cold-items", seed=3)
    embeddings = embeddings_of(data)
    trained = data.train_counts() > 0
    assert (~trained[1 : data.n_candidates + 1]).sum() > 0
    network = build_network(data, config, embeddings)
    fitted = trained & embeddings.has_text
    expected = Whitening.fit(torch.from_numpy(embeddings.vectors[fitted]), "whiten", 6)
    assert torch.equal(network.source.parts["text"].whitening.mean, expected.mean)
    assert torch.equal(network.source.parts["text"].whitening.basis, expected.basis)
    embeddings.vectors[~fitted] += 100
    again = build_network(data, config, embeddings)
    assert torch.equal(again.source.parts["text"].whitening.basis, expected.basis)
    assert network.source.parts["ids"].weight.any(1).tolist() == trained.tolist()
    assert not network.source.parts["text"].table[~torch.from_numpy(embeddings.has_text)].any()


def test_weights_depend_on_the_seed_alone(data: Dataset, make_config: Callable[..., Config]) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.rand(7)  # whatever was drawn before
        return build_network(data, make_config(seed=seed), None).get_parameter("source.parts.ids.weight")

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("id_embedding", [True, False])
def test_an_empty_network_takes_saved_weights(config: Config, id_embedding: bool) -> None:
    data = world(n_users=20)
    config = config.model_copy(update={"id_embedding": id_embedding})
    network = build_network(data, config, embeddings_of(data))
    other = with_source(empty_source(network.source.spec()), config)
    other.load_state_dict(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_too_few_items_to_train_on(make_config: Callable[..., Config]) -> None:
    rows = pl.DataFrame({"user_id": [1, 1, 1, 1], "item_id": [5, 5, 6, 7], "timestamp": [1, 2, 3, 4]})
    data = Dataset.from_tables(rows, time_unit="index")
    with pytest.raises(DataError, match="1 items with a training event; two are the least"):
        build_network(data, make_config(), None)


def test_text_on_untrained_items_alone(config: Config) -> None:
    data = world(n_users=20)
    embeddings = embeddings_of(data)
    embeddings.has_text[: data.n_candidates + 1] = False
    with pytest.raises(DataError, match="no item with text has a training event"):
        build_network(data, config, embeddings)
