"""A step in three phases: what a lease gives and takes is what one plain graph would, on padded batches too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hllm import hardware
from hllm.config import Config, load_config
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Dataset
from hllm.items.embed import embed
from hllm.items.source.base import ItemSource
from hllm.items.source.ids import Ids
from hllm.items.source.joined import Sum
from hllm.losses.objective import make_objective, users_of_tokens
from hllm.losses.views import BatchItems, Views, WholeCatalogue
from hllm.models.hllm import Network
from hllm.packing import Batch
from hllm.runs.build import build_network, with_source
from hllm.testing import TinyLiveText
from hllm.train import step as step_module
from hllm.train.captured import PaddedShape
from hllm.train.optim import Optimizer
from hllm.train.step import TrainStep

SMALL = {"max_len": 16, "batch_tokens": 160, "dropout": 0, "mask_prob": 0}
OBJECTIVES: list[dict[str, Any]] = [
    {"loss": "cross_entropy"},
    {"loss": "in_batch", "label_smoothing": 0, "mask_history": True},
    {"loss": "sampled", "label_smoothing": 0, "n_negatives": 16},
]


def loader_of(data: Dataset, config: Config) -> TrainLoader:
    training = config.training
    assert isinstance(training.max_len, int)
    return TrainLoader(
        data.train_histories(), training.max_len, training.batch_tokens, 0, windows=training.windows
    )


def padded_batches(loader: TrainLoader) -> list[tuple[Batch, Batch]]:
    """Every batch of an epoch beside the padded one that a captured step trains on."""
    shape = PaddedShape(loader)
    pairs = [(batch, shape.pad(batch)) for batch in loader.epoch(0)]
    assert all(padded is not None for _, padded in pairs)
    assert any(batch.n_tokens < shape.n_tokens for batch, _ in pairs)
    return pairs  # type: ignore[return-value]


def test_left_over_tokens_take_no_slot_of_a_real_one(
    data: Dataset, make_config: Callable[..., Config]
) -> None:
    for batch, padded in padded_batches(loader_of(data, make_config(max_len=16, batch_tokens=160))):
        assert padded.rows is not None
        slots, segments = padded.rows.slots, padded.rows.segments.flatten()
        assert slots.unique().numel() == padded.n_tokens == padded.n_users
        assert (segments[slots[: batch.n_tokens]] >= 0).all()
        assert (segments[slots[batch.n_tokens :]] == -1).all()
        assert (padded.targets[batch.n_tokens :] == 0).all()
        assert padded.lengths.sum() == batch.n_tokens and int(padded.offsets[-1]) == batch.n_tokens
        users = users_of_tokens(padded)
        assert (users[batch.n_tokens :] == -1).all()
        assert torch.equal(users[: batch.n_tokens], users_of_tokens(batch))


def gradients(network: Network) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


class Still(Optimizer):
    """Leaves weights and gradients alone, so that a step's gradients can be looked at."""

    def step(self, grad_clip: float | None) -> None:
        pass


def step_of(network: Network, config: Config) -> TrainStep:
    optimizer = Still(network, config.training)
    return TrainStep(
        network,
        optimizer,
        make_objective(config.objective),
        config.training,
        config.runtime,
        torch.device("cpu"),
    )


def assert_padding_changes_nothing(data: Dataset, config: Config, embeddings: Any = None) -> None:
    """Loss and every gradient of the padded batch, against the plain one's."""
    network = build_network(data, config, embeddings).double()
    step = step_of(network, config)
    for make in (WholeCatalogue, BatchItems):
        if make is BatchItems and config.objective.loss in ("cross_entropy", "nce"):
            continue
        views = make(data.train_counts(), config.objective, 0)
        for number, (batch, padded) in enumerate(padded_batches(loader_of(data, config))):
            plain = step(batch, views.view(batch, (0, number))), gradients(network)
            ours = step(padded, views.view(padded, (0, number))), gradients(network)
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective["loss"])
def test_the_padded_batch_trains_as_the_plain_one(
    data: Dataset, make_config: Callable[..., Config], objective: dict[str, Any]
) -> None:
    assert_padding_changes_nothing(data, make_config(**SMALL, **objective))


def test_the_padded_batch_trains_as_the_plain_one_with_torch_rechubs_model(data: Dataset) -> None:
    settings = {"item_llm": "tfidf", "max_len": 16, "batch_tokens": 160, "dropout": 0, "n_heads": 1}
    embeddings = embed(data, "tfidf", pooling="last", progress=False)
    assert_padding_changes_nothing(data, load_config("rechub", overrides=settings), embeddings)


# ---------------------------------------------------------------------- lease against one plain graph


def one_graph(
    network: Network, config: Config, batch: Batch, views: Views
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients with the source inside the graph: no lease."""
    network.zero_grad()
    view = views.view(batch, (0, 0))
    outputs = network.model(batch, view, network.source.encode(view.tokens))
    loss = make_objective(config.objective)(outputs.queries, outputs.classes, batch, view)
    loss.backward()
    return loss.detach(), gradients(network)


def live(data: Dataset, width: int, cached: bool, ids: bool) -> ItemSource:
    torch.manual_seed(0)
    text = TinyLiveText(data.n_catalogue, width, chunk=10_000, cached=cached)
    trained = torch.from_numpy(data.train_counts() > 0)
    return Sum({"text": text, "ids": Ids(data.n_catalogue, width, trained)}) if ids else text


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective["loss"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_a_lease_is_worth_one_plain_graph(
    data: Dataset, make_config: Callable[..., Config], objective: dict[str, Any], cached: bool, ids: bool
) -> None:
    """A live part with dropout, float64, 1e-9; on the whole catalogue and on the batch's own items."""
    config = make_config(max_len=16, batch_tokens=160, dropout=0.2, mask_prob=0.1, **objective)
    network = with_source(live(data, 16, cached, ids), config).double()
    network.train()
    step = step_of(network, config)
    batch = next(iter(loader_of(data, config).epoch(0)))
    makers: list[type[WholeCatalogue | BatchItems]] = [WholeCatalogue]
    if objective["loss"] != "cross_entropy":
        makers.append(BatchItems)
    for make in makers:
        views = make(data.train_counts(), config.objective, 0)
        torch.manual_seed(7)
        plain = one_graph(network, config, batch, views)
        torch.manual_seed(7)
        ours = step(batch, views.view(batch, (0, 0))), gradients(network)
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
        assert "source.parts.text.layer.linear1.weight" in ours[1] or "source.layer.linear1.weight" in ours[1]


def test_with_batch_items_only_those_are_encoded(data: Dataset, make_config: Callable[..., Config]) -> None:
    config = make_config(max_len=4, batch_tokens=16, loss="sampled", label_smoothing=0, n_negatives=4)
    source = TinyLiveText(data.n_catalogue, 16, cached=True)
    step = step_of(with_source(source, config), config)
    views = BatchItems(data.train_counts(), config.objective, 0)
    batch = next(iter(loader_of(data, config).epoch(0)))
    view = views.view(batch, (0, 0))
    step(batch, view)
    assert len(view.tokens) < len(views.classes)
    assert source.encoded == 2 * len(view.tokens)  # once without a graph, once with it


# ---------------------------------------------------------------------- products of a CPU with bf16 instructions


def cpu_step(
    data: Dataset, make_config: Callable[..., Config], **settings: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one step without chance."""
    config = make_config(**SMALL, d_model=64, item_llm=None, **settings)
    network = build_network(data, config, None)
    views = WholeCatalogue(data.train_counts(), config.objective, 0)
    batch = next(iter(loader_of(data, config).epoch(0)))
    return step_of(network, config)(batch, views.view(batch, (0, 0))), gradients(network)


def test_a_cpus_products_round_their_operands_where_it_has_the_instructions(
    data: Dataset, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    seen: list[str] = []
    objective = step_module.TrainStep.user_half

    def noted(self: TrainStep, *args: Any) -> Tensor:
        seen.append(matmul.fp32_precision)
        return objective(self, *args)

    monkeypatch.setattr(step_module.TrainStep, "user_half", noted)
    before = matmul.fp32_precision
    for fast, precision, wanted in [
        (True, "auto", "bf16"),
        (False, "auto", before),
        (True, "fp32", before),
        (True, "bf16", before),  # by autocast
    ]:
        monkeypatch.setattr(hardware, "bf16_is_fast", lambda _, fast=fast: fast)
        cpu_step(data, make_config, precision=precision)
        assert seen.pop() == wanted and matmul.fp32_precision == before


@pytest.mark.skipif(not hardware.bf16_is_fast("cpu"), reason="this processor has no instructions for bf16")
def test_rounded_products_give_float32s_gradients_to_bf16s_digits(
    data: Dataset, make_config: Callable[..., Config]
) -> None:
    (loss, ours), (exact, plain) = (
        cpu_step(data, make_config, precision=precision) for precision in ("auto", "fp32")
    )
    assert float(loss) == pytest.approx(float(exact), rel=1e-3)
    for name, wanted in plain.items():
        off = torch.linalg.vector_norm(ours[name] - wanted)
        assert off <= 0.03 * torch.linalg.vector_norm(wanted) + 1e-6, name
