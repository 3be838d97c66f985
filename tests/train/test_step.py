"""The captured step's static batch: padded to one shape, it gives what the plain batch gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hllm.config import Config, load_config
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Dataset
from hllm.items.embed import embed
from hllm.losses.objective import make_objective, users_of_tokens
from hllm.packing import Batch, make_rows
from hllm.runs.build import build_network
from hllm.train.step import GraphedStep


def static_batches(loader: TrainLoader) -> list[tuple[Batch, Batch]]:
    """Every batch of an epoch beside the static one that a captured step would train on."""
    graphed = GraphedStep(lambda batch: batch.tokens, loader)
    pairs = []
    for batch in loader.epoch(0):
        graphed._fill(batch, make_rows(batch, graphed.row, graphed.n_rows))
        assert graphed.static is not None and graphed.static.rows is not None
        copied = {
            name: getattr(graphed.static, name).clone() for name in ("tokens", "times", "targets", "users")
        }
        rows = graphed.static.rows
        static = Batch(
            **copied, offsets=batch.offsets, rows=type(rows)(rows.slots.clone(), rows.segments.clone())
        )
        pairs.append((batch, static))
    assert any(batch.n_tokens < static.n_tokens for batch, static in pairs)
    return pairs


def loader_of(data: Dataset, config: Config) -> TrainLoader:
    training = config.training
    assert isinstance(training.max_len, int)
    return TrainLoader(
        data.train_histories(), training.max_len, training.batch_tokens, 0, windows=training.windows
    )


def test_left_over_tokens_take_no_slot_of_a_real_one(
    data: Dataset, make_config: Callable[..., Config]
) -> None:
    for batch, static in static_batches(loader_of(data, make_config(max_len=16, batch_tokens=160))):
        assert static.rows is not None
        slots, segments = static.rows.slots, static.rows.segments.flatten()
        assert slots.unique().numel() == static.n_tokens
        assert (segments[slots[: batch.n_tokens]] >= 0).all()
        assert (segments[slots[batch.n_tokens :]] == -1).all()
        assert (static.targets[batch.n_tokens :] == 0).all()
        users = users_of_tokens(static)
        assert (users[batch.n_tokens :] == -1).all()
        assert torch.equal(users[: batch.n_tokens], users_of_tokens(batch))


def assert_same(data: Dataset, config: Config, embeddings: Any = None) -> None:
    """Loss and every gradient of the padded batch, against the plain one's."""
    network = build_network(data, config, embeddings).double()
    objective = make_objective(config, torch.ones(len(network.source.trained_tokens), dtype=torch.long))

    def loss_of(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        network.zero_grad()
        queries, items, targets = network(batch)
        loss = objective(queries, items, targets, batch, network.source.trained_rows)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    for batch, static in static_batches(loader_of(data, config)):
        plain, gradients = loss_of(batch)
        padded, padded_gradients = loss_of(static)
        torch.testing.assert_close(padded, plain, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(padded_gradients, gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "objective",
    [{"loss": "cross_entropy"}, {"loss": "in_batch", "label_smoothing": 0, "mask_history": True}],
    ids=lambda objective: objective["loss"],
)
def test_the_padded_batch_trains_as_the_plain_one(
    data: Dataset, make_config: Callable[..., Config], objective: dict[str, Any]
) -> None:
    settings = {"max_len": 16, "batch_tokens": 160, "dropout": 0, "mask_prob": 0, **objective}
    assert_same(data, make_config(**settings))


def test_the_padded_batch_trains_as_the_plain_one_with_torch_rechubs_model(data: Dataset) -> None:
    settings = {"item_llm": "tfidf", "max_len": 16, "batch_tokens": 160, "dropout": 0, "n_heads": 1}
    embeddings = embed(data, "tfidf", pooling="last", progress=False)
    assert_same(data, load_config("rechub", overrides=settings), embeddings)
