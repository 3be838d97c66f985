"""torch-rechub's model on packed windows, against its padded twin in hllm.compat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hllm.compat.rechub import HLLMModel, load_model, score_windows
from hllm.config import load_config
from hllm.errors import ArtifactError, ConfigError
from hllm.formats.rechub import read_model, write_model
from hllm.items.source.build import make_source
from hllm.models.hllm import Network
from hllm.models.rechub import window_ends
from hllm.models.rechub_weights import load_rechub_weights, rechub_weights
from hllm.packing import Batch, ItemView, Rows, make_rows, offsets_of
from hllm.runs.build import with_source

N_ITEMS, D, MAX_LEN = 15, 24, 8
PRESETS = ("rechub", "rechub-doc")


@pytest.fixture
def make_network() -> Callable[..., Network]:
    """A network of 15 items with every weight random, in float64."""

    def make(preset: str, **settings: Any) -> Network:
        torch.manual_seed(1)
        buckets = {} if settings.get("time_embedding") == "none" else {"num_time_buckets": 40}
        config = load_config(
            preset,
            overrides={"max_len": MAX_LEN, "n_heads": 3, "dropout": 0, **buckets, **settings},
        )
        raw = torch.randn(N_ITEMS + 1, D) * torch.linspace(0.5, 2, N_ITEMS + 1).unsqueeze(1)
        raw[[0, 4]] = 0  # padding, and an item without text
        has_text = raw.any(1)
        trained = torch.arange(N_ITEMS + 1) > 0
        network = with_source(make_source(config.items, config.users.d_model, trained, raw, has_text), config)
        for parameter in network.model.user_model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        return network.double().eval()

    return make


def forward(network: Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """Queries (T, d) and the classes (15, d) of all items."""
    tokens = torch.arange(1, N_ITEMS + 1)
    view = ItemView(tokens, batch.tokens - 1, batch.targets - 1, N_ITEMS)
    outputs = network.model(batch, view, network.source.encode(tokens))
    return outputs.queries, outputs.classes


def table_of(network: Network) -> Tensor:
    return network.get_buffer("source.parts.text.table")


def make_batch(lengths: list[int], seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    times = torch.cat([torch.randint(0, 90_000, (k,), generator=g).sort().values for k in lengths])
    tokens, targets = (torch.randint(1, N_ITEMS + 1, (n,), generator=g) for _ in range(2))
    sizes = torch.tensor(lengths)
    return Batch(torch.arange(len(lengths)), tokens, times, targets, offsets_of(sizes))


def twin_of(network: Network, preset: str) -> HLLMModel:
    weights = rechub_weights(network)
    twin = HLLMModel(
        weights["item_embeddings"], N_ITEMS + 1, D, n_heads=3, n_layers=2, max_seq_len=MAX_LEN,
        dropout=0.0, num_time_buckets=40, state=preset,
    ).double()  # fmt: skip
    twin.load_state_dict(weights)  # our weights under their names, none missing, none left over
    return twin.eval()


def windows_of(batch: Batch) -> tuple[Tensor, Tensor]:
    tokens, times = batch.tokens.view(-1, MAX_LEN), batch.times.view(-1, MAX_LEN)
    return tokens, times[:, -1:] - times


@pytest.mark.parametrize("preset", PRESETS)
def test_full_windows_score_as_their_model_scores_them(
    make_network: Callable[..., Network], preset: str
) -> None:
    network, batch = make_network(preset), make_batch([MAX_LEN] * 4)
    theirs = twin_of(network, preset)(*windows_of(batch))  # (4, L, V)
    ours = network.score(network.query(batch), torch.arange(N_ITEMS + 1))
    torch.testing.assert_close(ours, theirs[:, -1])
    queries, items = forward(network, batch)
    torch.testing.assert_close(queries @ items.T, theirs.flatten(0, 1)[:, 1:])


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_are_theirs(make_network: Callable[..., Network], preset: str) -> None:
    network, batch = make_network(preset), make_batch([MAX_LEN] * 4)
    twin = twin_of(network, preset)
    weight = torch.randn(4 * MAX_LEN, N_ITEMS, dtype=torch.float64)
    (twin(*windows_of(batch)).flatten(0, 1)[:, 1:] * weight).sum().backward()
    queries, items = forward(network, batch)
    ((queries @ items.T) * weight).sum().backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in network.model.user_model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


@pytest.mark.parametrize("preset", PRESETS)
def test_short_windows_end_at_the_last_position_and_see_no_padding(
    make_network: Callable[..., Network], preset: str
) -> None:
    """What their blocks give for a window alone, its positions counted from max_seq_len - n."""
    network, batch = make_network(preset), make_batch([3, 1, MAX_LEN, 5])
    twin = twin_of(network, preset)
    queries, _ = forward(network, batch)
    for first, last in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        n = last - first
        tokens, times = batch.tokens[first:last], batch.times[first:last]
        minutes = (times[-1] - times).float() / 60
        x = twin.item_embeddings[tokens] + twin.position_embedding.weight[MAX_LEN - n :]
        x = (x + twin.time_embedding(minutes.sqrt().long().clamp(max=39))).unsqueeze(0)
        for block in twin.transformer_blocks:
            x = block(x, rel_pos_bias=twin.rel_pos_bias(n))
        expected = network.model.scorer.query(x[0])
        torch.testing.assert_close(queries[first:last], expected)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("time_embedding", ["window_end", "previous", "none"])
def test_neighbours_in_a_batch_change_nothing(
    make_network: Callable[..., Network], preset: str, time_embedding: str
) -> None:
    network, batch = make_network(preset, time_embedding=time_embedding), make_batch([3, 1, 6, 5])
    together = network.query(batch)
    for u, (first, last) in enumerate(
        zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)
    ):
        alone = Batch(
            batch.users[u : u + 1], batch.tokens[first:last], batch.times[first:last],
            batch.targets[first:last], torch.tensor([0, last - first], dtype=torch.int32),
        )  # fmt: skip
        torch.testing.assert_close(network.query(alone)[0], together[u])


def test_gaps_since_the_event_before_are_causal_at_every_position(
    make_network: Callable[..., Network],
) -> None:
    """`window_end` is not, before a window's last event: the letter of the original."""
    batch = make_batch([MAX_LEN])
    later = batch.times.clone()
    later[-1] += 500_000
    changed = replace(batch, times=later)
    for form, same in (("previous", True), ("window_end", False)):
        network = make_network("rechub", time_embedding=form)
        before, after = forward(network, batch)[0][:-1], forward(network, changed)[0][:-1]
        assert torch.equal(before, after) is same, form


def test_the_last_event_of_each_window_is_found_in_any_layout() -> None:
    batch = make_batch([3, 1, 6, 5, 16])
    rows = make_rows(batch, row=16, n_rows=4)
    last = rows.slots[batch.offsets[1:].long() - 1]
    expected = last.repeat_interleave(batch.lengths)
    assert torch.equal(window_ends(rows), expected)
    wide = Rows(torch.tensor([4, 5, 1]), torch.tensor([[-1, 0, -1, -1], [3, 3, -1, -1]]))
    assert window_ends(wide).tolist() == [5, 5, 1]


def test_weights_go_out_and_come_back(make_network: Callable[..., Network]) -> None:
    network, other, batch = make_network("rechub"), make_network("rechub"), make_batch([4, 8])
    for parameter in other.model.user_model.parameters():
        torch.nn.init.zeros_(parameter)
    load_rechub_weights(other, rechub_weights(network))
    torch.testing.assert_close(other.query(batch), network.query(batch))


def test_weights_of_another_model_are_refused(make_network: Callable[..., Network]) -> None:
    weights = rechub_weights(make_network("rechub"))
    with pytest.raises(ArtifactError, match="check max_len, n_layers, n_heads"):
        load_rechub_weights(make_network("rechub", n_layers=3), weights)
    with pytest.raises(ArtifactError, match="item_embeddings have shape"):
        load_rechub_weights(make_network("rechub"), weights | {"item_embeddings": torch.zeros(3, D)})
    del weights["item_embeddings"]
    with pytest.raises(ArtifactError, match="no item_embeddings"):
        load_rechub_weights(make_network("rechub"), weights)


def test_vectors_are_the_item_llms_own_and_never_trained(make_network: Callable[..., Network]) -> None:
    network = make_network("rechub-doc")
    assert not list(network.source.parameters())
    tokens = torch.tensor([1, 4, 7])
    assert torch.equal(network.source.encode(tokens), table_of(network)[tokens])
    assert not network.source.encode(torch.tensor([4])).any()  # no text: the zero vector


def test_added_items_are_scored_by_their_vectors(make_network: Callable[..., Network]) -> None:
    network, batch = make_network("rechub"), make_batch([4])
    query = network.query(batch)
    network.source.extend(
        torch.stack([table_of(network)[7].float(), torch.zeros(D)]), torch.tensor([True, False])
    )
    network.train().eval()
    scores = network.score(query, torch.arange(N_ITEMS + 3))
    torch.testing.assert_close(scores[:, N_ITEMS + 1], scores[:, 7], rtol=1e-6, atol=1e-6)
    assert scores[0, N_ITEMS + 2] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_len": "all"}, "max_len is a number"),
        ({"d_model": 64}, "own width"),
        ({"adapter_hidden": 64}, "own width"),
        ({"id_embedding": True}, "id_embedding=false"),
        ({"loss": "in_batch", "label_smoothing": 0.1}, "label_smoothing"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("rechub", overrides=settings)


def test_a_width_that_heads_do_not_divide_is_refused(make_network: Callable[..., Network]) -> None:
    with pytest.raises(ConfigError, match="n_heads=5; choose n_heads from 1, 2, 3, 4, 6, 8, 12, 24"):
        make_network("rechub", n_heads=5)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_model_pth_of_ours_is_theirs(
    make_network: Callable[..., Network], preset: str, tmp_path: Path
) -> None:
    network, batch = make_network(preset).float(), make_batch([MAX_LEN] * 3)
    write_model(tmp_path / "model.pth", rechub_weights(network))
    twin = load_model(tmp_path / "model.pth")
    assert twin.state == preset
    theirs = score_windows(twin, *windows_of(batch))[:, 1:]
    ours = network.score(network.query(batch), torch.arange(1, N_ITEMS + 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    load_rechub_weights(network, read_model(tmp_path / "model.pth"))
    torch.testing.assert_close(network.score(network.query(batch), torch.arange(1, N_ITEMS + 1)), ours)
