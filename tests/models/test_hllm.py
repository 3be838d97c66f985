"""The network as a whole: packing changes nothing, users do not meet, the past does not see the future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import hllm
from hllm.errors import DataError
from hllm.items.source.ids import Ids
from hllm.losses.cross_entropy import cross_entropy
from hllm.models import hllm as hllm_module
from hllm.models.config import ScorerConfig, UsersConfig
from hllm.models.gated import GatedUserModel
from hllm.models.hllm import HLLM, Network
from hllm.models.scorers import make_scorer
from hllm.packing import Batch, last_positions, make_rows
from hllm.testing.live import TinyLiveText

MakeNetwork = Callable[..., Network]
Forward = Callable[[Network, Batch], tuple[torch.Tensor, ...]]
MakeBatch = Callable[[list[list[int]]], Batch]

HISTORIES = [[1, 2, 3, 4, 6], [7, 8, 9], [10], [2, 1, 4, 9, 10, 6, 7, 8, 1, 2, 3, 4, 9, 9, 1, 2, 6], [6, 6]]


def loss_of(forward: Forward, network: Network, batch: Batch) -> torch.Tensor:
    queries, items, targets = forward(network, batch)
    return cross_entropy(queries, items, targets, 0.1)


def gradients(network: Network) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in network.named_parameters()
    }


def test_packed_equals_one_user_at_a_time(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    """Outputs and gradients in float64, to 1e-9."""
    network = make_network()
    packed = make_batch(HISTORIES)
    queries = forward(network, packed)[0]
    alone = torch.cat([forward(network, make_batch([history]))[0] for history in HISTORIES])
    torch.testing.assert_close(queries, alone, atol=1e-9, rtol=0)

    loss_of(forward, network, packed).backward()
    ours = gradients(network)
    network.zero_grad()
    n_targets = int((packed.targets > 0).sum())
    for history in HISTORIES:
        if len(history) > 1:  # the mean over targets, as a sum of each user's share
            (loss_of(forward, network, make_batch([history])) * (len(history) - 1) / n_targets).backward()
    theirs = gradients(network)
    assert ours["model.user_model.blocks.0.attention.bias.table"].any()
    assert ours["source.parts.text.adapter.0.weight"].any() and ours["source.parts.ids.weight"].any()
    for name, gradient in ours.items():
        torch.testing.assert_close(
            gradient, theirs[name], atol=1e-9, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_changing_one_user_changes_no_other_bit(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    network = make_network()
    before = forward(network, make_batch(HISTORIES))[0]
    changed = [list(history) for history in HISTORIES]
    changed[3] = [11 - t if 1 <= 11 - t not in (5, 11, 12) else 1 for t in changed[3]]
    after = forward(network, make_batch(changed))[0]
    owner = torch.repeat_interleave(torch.arange(5), torch.tensor([len(h) for h in HISTORIES]))
    assert torch.equal(before[owner != 3], after[owner != 3])
    assert not torch.equal(before[owner == 3], after[owner == 3])


def test_a_neighbour_gets_no_gradient(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    """The loss of one user reaches the inputs of that user alone."""
    network = make_network()
    batch = make_batch(HISTORIES)
    x = torch.randn(batch.n_tokens, 16, dtype=torch.float64, requires_grad=True)
    network.model.hidden(batch, x)[5:8].sum().backward()  # the second user
    assert x.grad is not None
    assert bool((x.grad[5:8] != 0).any(1).all())
    assert not x.grad[:5].any() and not x.grad[8:].any()


def test_case_d16_on_the_cpu(make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward) -> None:
    """Users A (5 items) and B (3) packed, float32: B is as if alone, whatever A is; gradients finite."""
    network = make_network(torch.float32)
    a, b = [1, 2, 3, 4, 6], [7, 8, 9]
    packed = forward(network, make_batch([a, b]))[0][5:]
    torch.testing.assert_close(packed, forward(network, make_batch([b]))[0], atol=1e-5, rtol=0)
    assert torch.equal(packed, forward(network, make_batch([a[::-1], b]))[0][5:])
    histories = [(list(range(1, 5)) * 300)[:1025], b]  # 1,025: no multiple of anything
    loss_of(forward, network, make_batch(histories)).backward()
    for name, gradient in gradients(network).items():
        assert bool(torch.isfinite(gradient).all()), name


def test_the_past_does_not_see_the_future(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    network = make_network()
    one, other = (forward(network, make_batch([[1, 2, 3, *end]]))[0] for end in ([4, 6], [9, 10]))
    assert torch.equal(one[:3], other[:3])
    assert not torch.allclose(one[3], other[3])


def test_rows_planned_elsewhere_change_nothing(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    network = make_network()
    batch = make_batch(HISTORIES)
    for rows in (make_rows(batch, 24), make_rows(batch, 64, 3)):
        torch.testing.assert_close(
            forward(network, replace(batch, rows=rows))[0], forward(network, batch)[0], atol=1e-12, rtol=0
        )


def test_the_training_softmax_holds_trained_items_only(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    """protocol.md, "Negatives"; and every target's row is its own item."""
    network = make_network()
    batch = make_batch(HISTORIES)
    queries, items, targets = forward(network, batch)
    trained = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9, 10])
    assert items.shape == (9, 16)
    assert queries.shape == (batch.n_tokens, 16)
    assert torch.equal(targets >= 0, batch.targets > 0)
    named = trained[targets.clamp(min=0)]
    assert torch.equal(named[targets >= 0], batch.targets[batch.targets > 0])
    torch.testing.assert_close(items, network.model.scorer.item(network.source.encode(trained)))


def test_ranking_sees_what_training_computes(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    network = make_network().eval()
    batch = make_batch(HISTORIES)
    queries, items, _ = forward(network, batch)
    last = batch.offsets[1:].long() - 1
    torch.testing.assert_close(network.query(batch), queries[last])
    scores = network.score(network.query(batch), torch.tensor([1, 2, 3, 4, 6, 7, 8, 9, 10]))
    torch.testing.assert_close(scores, queries[last] @ items.T)


def test_scores_follow_the_weights(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    """The cached item table does not outlive a return to training."""
    network = make_network().eval()
    query, tokens = network.query(make_batch([[1, 2]])), torch.tensor([4, 11])
    before = network.score(query, tokens)
    network.train()
    with torch.no_grad():
        network.get_parameter("source.parts.text.adapter.2.bias").add_(1.0)
    network.eval()
    assert not torch.allclose(network.score(query, tokens), before)


def test_a_cpu_reads_histories_some_at_a_time(
    make_network: MakeNetwork, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs in float64, to 1e-12, however few tokens it reads at once."""
    network, batch = make_network().eval(), make_batch(HISTORIES)
    whole, read, hidden = network.query(batch), [], network.model.last_hidden

    def noted(part: Batch, x: torch.Tensor) -> torch.Tensor:
        read.append(part.n_tokens)
        return hidden(part, x)

    monkeypatch.setattr(network.model, "last_hidden", noted)
    for tokens, wanted in [(10, [9, 17, 2]), (100, [28])]:
        monkeypatch.setattr(hllm_module, "CPU_TOKENS", tokens)
        read.clear()
        torch.testing.assert_close(network.query(batch), whole, atol=1e-12, rtol=0)
        assert read == wanted


def test_the_last_events_states_alone(make_batch: MakeBatch) -> None:
    """What ranking on a CPU computes of a gated model, against the states of all events, in float64, to 1e-12."""
    torch.manual_seed(0)
    for n_layers in (1, 3):
        users = UsersConfig(d_model=8, n_layers=n_layers, n_heads=2, max_distance=6)
        model = HLLM(GatedUserModel(users, 8), make_scorer(ScorerConfig())).double().eval()
        for p in model.parameters():
            torch.nn.init.normal_(p)
        batch = make_batch(HISTORIES)
        x = torch.randn(batch.n_tokens, 8, dtype=torch.float64)
        with torch.no_grad():
            wanted = model.hidden(batch, x)[last_positions(batch.offsets)]
            torch.testing.assert_close(model.last_hidden(batch, x), wanted, atol=1e-12, rtol=0)


def test_ranking_in_bf16_by_kernels_lays_nothing_out(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where kernels work, no rows are planned under autocast; everywhere else they are."""
    model, batch = make_model(32), make_batch(HISTORIES)
    x = torch.randn(batch.n_tokens, 32)
    monkeypatch.setattr(hllm_module.kernels, "usable", lambda device: True)
    with torch.no_grad():
        assert model._rows(batch, x).bounds is None  # float32
    with torch.autocast("cpu", torch.bfloat16):
        assert model._rows(batch, x).bounds is None  # a graph is made
        with torch.no_grad():
            rows = model._rows(batch, x)
            assert rows.bounds is not None and rows.longest == max(len(h) for h in HISTORIES)
            monkeypatch.setattr(hllm_module.kernels, "usable", lambda device: False)
            assert model._rows(batch, x).bounds is None


def test_masking_hides_inputs_in_training_only(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    network = make_network(mask_prob=0.5)
    batch = make_batch([[1, 2, 3, 4, 6, 7]])
    torch.manual_seed(1)
    one, targets = forward(network, batch)[0], forward(network, batch)[2]
    torch.manual_seed(2)
    other = forward(network, batch)[0]
    assert not torch.allclose(one, other)
    assert torch.equal(targets >= 0, batch.targets > 0)  # a hidden input is still a target of the one before
    network.eval()
    assert torch.equal(forward(network, batch)[0], forward(network, batch)[0])
    loss = forward(network.train(), batch)[0].sum()
    loss.backward()
    assert network.model.user_model.mask_vector.grad.any()


def test_an_empty_history_is_refused(
    make_network: MakeNetwork, make_batch: MakeBatch, forward: Forward
) -> None:
    with pytest.raises(DataError, match="without any event"):
        make_network().query(make_batch([[1, 2], []]))


def test_the_module_is_public() -> None:
    assert hllm.models.HLLM is HLLM
    with pytest.raises(AttributeError, match="HLM"):
        _ = hllm.models.HLM


def test_the_table_is_made_once_for_each_version_of_the_weights(make_batch: MakeBatch) -> None:
    """Ranking encodes the catalogue once, and no event of a history."""
    source = TinyLiveText(12, 16)
    network = Network(source, make_model(16)).eval()
    batch = make_batch([[1, 2, 3], [4, 4, 4, 4, 1]])
    for _ in range(3):
        network.eval()
        network.score_range(network.query(batch), 1, 13)
        network.score(network.query(batch), torch.tensor([3, 4]))
    assert source.encoded == 13
    table = network.table()
    changes: list[Callable[[], object]] = [
        lambda: network.load_state_dict(network.state_dict()),
        lambda: torch._foreach_add_([network.get_parameter("source.layer.linear1.bias").detach()], 1.0),
        lambda: network.get_parameter("model.scorer.log_scale").detach().add_(0.1),
        lambda: source.extend(None, torch.zeros(2, dtype=torch.bool)),
        lambda: network.train().eval(),
        lambda: network.double(),
    ]
    for change in changes:
        change()
        assert network.table() is not table
        table = network.table()
        assert network.table() is table
    assert len(table.raw) == 15 and table.raw.dtype == torch.float64


def test_a_step_of_an_optimiser_is_another_version(make_batch: MakeBatch) -> None:
    network = Network(Ids(9, 16, torch.ones(10, dtype=torch.bool)), make_model(16)).eval()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    before = network.table().scored.clone()
    network.source.encode(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert not torch.equal(network.table().scored, before)


@pytest.mark.parametrize("scorer", ["dot", "cosine"])
def test_ids_are_ranked_from_where_they_are(make_batch: MakeBatch, scorer: str) -> None:
    source = Ids(9, 16, torch.ones(10, dtype=torch.bool))
    network = Network(source, make_model(16, scorer)).eval()
    table = network.table()
    assert table.raw.data_ptr() == source.weight.data_ptr()
    assert (table.scored is table.raw) == (scorer == "dot")
    query = network.query(make_batch([[1, 2]]))
    assert torch.equal(network.score_range(query, 2, 5), network.score(query, torch.tensor([2, 3, 4])))
    assert network.all_finite(query)
    with torch.no_grad():
        source.weight[3] = torch.nan if scorer == "cosine" else torch.inf
    assert not network.all_finite(query)


def make_model(width: int, scorer: str = "cosine") -> HLLM:
    users = UsersConfig(n_layers=1, n_heads=2)
    return HLLM(GatedUserModel(users, width), make_scorer(ScorerConfig(scorer=scorer)))
