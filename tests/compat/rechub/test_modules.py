"""torch-rechub's modules by hand-computed values; test_parity.py has them beside the originals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hllm.compat import rechub
from hllm.compat.rechub.data import window_arrays
from hllm.compat.rechub.states import time_buckets
from hllm.errors import ArtifactError, ConfigError, DataError, HLLMError
from hllm.formats.rechub import write_model

V, D, H = 6, 4, 2
TOKENS = torch.tensor([[0, 0, 3, 5], [1, 2, 2, 4]])
SECONDS = torch.tensor([[0, 0, 7200, 0], [90_000, 3600, 60, 0]])


def vectors() -> torch.Tensor:
    table = torch.arange(V * D, dtype=torch.float32).view(V, D).sin()
    table[0] = 0
    return table


def hllm(**settings) -> rechub.HLLMModel:
    torch.manual_seed(0)
    return rechub.HLLMModel(vectors(), V, D, H, n_layers=1, max_seq_len=5, **settings).eval()


def hstu(**settings) -> rechub.HSTUModel:
    torch.manual_seed(0)
    return rechub.HSTUModel(V, D, H, n_layers=1, dqk=3, dv=2, max_seq_len=5, **settings).eval()


def test_time_buckets_of_both_functions_and_units():
    seconds = torch.tensor([0, 59, 60, 3600, 10**9])
    assert time_buckets(seconds, 50).tolist() == [0, 0, 1, 7, 50]  # sqrt of 1, 60 and 16,666,667 minutes
    assert time_buckets(seconds, 50, "log").tolist() == [0, 0, 0, 4, 16]
    assert time_buckets(seconds, 50, "sqrt", "seconds").tolist() == [0, 7, 7, 50, 50]
    assert time_buckets(seconds, 99, "log", "seconds", divisor=0.5).tolist() == [0, 8, 8, 16, 41]


def test_relative_position_bias_spaces_its_buckets_over_the_length():
    bias = rechub.RelPosBias(n_heads=1, max_seq_len=4, num_buckets=3)
    with torch.no_grad():
        bias.rel_pos_bias_table.copy_(torch.tensor([[0.0], [1.0], [2.0]]))
    # Distances 0 to 5, times 2, over 4: buckets 0, 0, 1, 1, 2, and 2 for what is beyond.
    assert bias(6)[0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(bias(6), bias(6).mT)


def test_starts_of_the_bias_table():
    torch.manual_seed(0)
    assert rechub.RelPosBias(64, 10).rel_pos_bias_table.abs().max() <= math.sqrt(1 / 32)
    assert rechub.RelPosBias(64, 10, state="rechub-doc").rel_pos_bias_table.std().item() == pytest.approx(
        1, abs=0.1
    )
    for state in ("rechub", "rechub-doc"):  # the models' own start sets it to zero in either state
        assert not hllm(state=state).rel_pos_bias.rel_pos_bias_table.any()


def test_time_and_position_bias_adds_one_entry_of_each_table():
    bias = rechub.RelativeBucketedTimeAndPositionBias(1, max_seq_len=3, num_time_buckets=4)
    with torch.no_grad():
        bias.pos_w.copy_(torch.arange(5.0).view(5, 1))  # i - j = -2 .. 2
        bias.ts_w.copy_(torch.arange(5.0).view(5, 1) * 10)
    found = bias(torch.tensor([[240, 60, 0]]))[0, 0]  # gaps of 3, 4 and 1 minutes
    assert found[0].tolist() == [2, 3 + 10, 4 + 20]
    assert found[2].tolist() == [0 + 20, 1 + 10, 2]
    assert bias(seq_len=2)[0, 0].tolist() == [[2, 3], [1, 2]]
    with pytest.raises(ConfigError, match="max_seq_len=3"):
        bias(seq_len=4)
    with pytest.raises(ConfigError, match="time_diffs"):
        bias()


def test_block_is_causal_and_attends_to_padding():
    model = hllm()
    base = model(TOKENS, SECONDS)
    changed = TOKENS.clone()
    changed[1, 3] = 1
    assert torch.equal(model(changed, SECONDS)[1, :3], base[1, :3])
    changed[0, 0] = 2  # was padding, which the original does not mask
    assert not torch.allclose(model(changed, SECONDS)[0, 3], base[0, 3])


def test_hllm_scores_are_cosines_over_the_temperature():
    model = hllm(temperature=0.5)
    hidden, items = model.encode(TOKENS, SECONDS), torch.nn.functional.normalize(vectors(), dim=-1)
    assert torch.allclose(model.item_embeddings, items)
    assert torch.allclose(hidden.norm(dim=-1), torch.ones(2, 4))
    assert torch.allclose(model(TOKENS, SECONDS)[1, 3, 4], hidden[1, 3] @ items[4] / 0.5)
    assert hllm().temperature == 0.07


def test_hllm_of_the_document_scores_raw_products():
    model = hllm(state="rechub-doc")
    assert torch.equal(model.item_embeddings, vectors()) and model.temperature == 1
    assert torch.allclose(model(TOKENS, SECONDS), model.encode(TOKENS, SECONDS) @ vectors().T)


def test_hllm_without_blocks_is_a_sum_of_embeddings():
    torch.manual_seed(0)
    model = rechub.HLLMModel(vectors(), V, D, H, 0, 5, use_rel_pos_bias=False, state="rechub-doc").eval()
    bucket = [0, 10, 38]  # sqrt of 0, 120 (10.95) and 1,500 (38.7) minutes
    for row, column, at in ((0, 3, bucket[0]), (0, 2, bucket[1]), (1, 0, bucket[2])):
        expected = vectors()[TOKENS[row, column]] + model.position_embedding.weight[column]
        expected = expected + model.time_embedding.weight[at]
        assert torch.allclose(model.encode(TOKENS, SECONDS)[row, column], expected)


def test_hstu_ignores_padding_in_0_9_only():
    for state, blind in (("rechub", True), ("rechub-doc", False)):
        model = hstu(state=state)
        with torch.no_grad():
            model.position_embedding.weight[0, 0] += 5.0  # the first slot of row 0 is padding
        before = hstu(state=state)(TOKENS, SECONDS)
        assert torch.allclose(model(TOKENS, SECONDS)[0, 3], before[0, 3]) == blind


def test_hstu_layer_divides_by_the_window_instead_of_softmax():
    layer = rechub.HSTULayer(D, 1, dqk=2, dv=4, dropout=0.0, max_seq_len=5).eval()
    x = torch.randn(1, 3, D, generator=torch.Generator().manual_seed(1))
    q, k, u, v = torch.nn.functional.silu(layer.proj1(layer.norm_in(x))).split((2, 2, 4, 4), -1)
    mixed = torch.zeros(3, 4)
    for i in range(3):
        for j in range(i + 1):
            score = q[0, i] @ k[0, j] / math.sqrt(2) + layer.rab.pos_w[j - i + 4, 0]
            mixed[i] += torch.nn.functional.silu(score) / 5 * v[0, j]
    expected = layer.proj2(layer.norm_attn(mixed) * u[0])
    assert torch.allclose(layer(x)[0], expected, atol=1e-6)
    later = layer(x, padding_mask=torch.tensor([[False, True, True]]))
    assert torch.allclose(later[0, 1:], layer(x[:, 1:])[0], atol=1e-6)


def test_settings_of_the_other_state_are_refused():
    with pytest.raises(ConfigError, match="no setting score_norm, scale_input_embedding"):
        hstu(state="rechub-doc", score_norm="l2", scale_input_embedding=True)
    with pytest.raises(ConfigError, match="no setting use_rel_pos_bias"):
        hstu(use_rel_pos_bias=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hllm(state="rechub-docs"), "unknown state 'rechub-docs' .*'rechub-doc'"),
        (lambda: hllm(time_bucket_fn="sqr"), "unknown time_bucket_fn"),
        (lambda: hstu(score_norm="l1"), "unknown score_norm"),
        (lambda: hstu(temperature=0), "temperature=0"),
        (lambda: rechub.HLLMTransformerBlock(5, 2), "d_model=5 must be divisible by n_heads; n_heads=2"),
        (lambda: rechub.HLLMModel(vectors(), V + 1, D, H), r"item_embeddings\.shape\[0\]=6 != vocab_size=7"),
        (lambda: hllm()(torch.ones(1, 6, dtype=torch.long)), "seq_len=6 exceeds max_seq_len=5"),
        (lambda: rechub.NCELoss(reduction="avg"), "unknown reduction"),
        (lambda: rechub.pad_sequences([[1]], padding="left"), "unknown padding"),
        (lambda: rechub.SeqDataset([[1]], [[0]], [1], [[0]]), "arrays of one shape"),
        (lambda: rechub.topk_metrics({1: [2]}, {2: [2]}), "differ in users, for example 1"),
        (lambda: rechub.topk_metrics({1: [2]}, {1: [2]}, 5), "topKs=5"),
        (lambda: rechub.topk_metrics({1: []}, {1: [2]}), "no item for any user"),
    ],
)
def test_errors_name_the_value(call, message):
    with pytest.raises(HLLMError, match=message):
        call()


def test_nce_is_cross_entropy_over_everything_but_ignored_targets():
    logits, targets = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]), torch.tensor([2, 0])
    expected = math.log(math.exp(-30) + math.exp(-20) + 1)
    assert rechub.NCELoss(0.1)(logits, targets).item() == pytest.approx(expected, abs=1e-6)
    assert rechub.NCELoss()(logits[1:], targets[1:]).item() == pytest.approx(math.log(3))


def test_in_batch_negatives_are_the_other_targets():
    """Rows 0 and 2 share a target: neither is the other's negative; row 3 is padding and no negative."""
    hidden, items = torch.eye(4)[:, :3], torch.tensor([[9.0, 9, 9], [1, 2, 3], [4, 0, 1]])
    loss = rechub.InBatchNCELoss(temperature=1.0, reduction="none", negatives="in-batch")
    found = loss(hidden, items, torch.tensor([1, 2, 1, 0]))
    two = lambda own, other: math.log(1 + math.exp(other - own))  # noqa: E731
    # Row 1 meets item 1 twice, once for each row that targets it.
    expected = [two(1, 4), math.log(1 + 2 * math.exp(2 - 0)), two(3, 1)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_vocab_mask_hides_items_for_all_or_for_one_row():
    mask = rechub.VocabMask(4, [0, 3, 99])
    assert (mask.apply_mask(torch.zeros(2, 4)) < 0).tolist() == [[True, False, False, True]] * 2
    rows = mask.apply_mask(torch.zeros(2, 4), torch.tensor([[1, 1], [2, 0]]))
    assert (rows < 0).tolist() == [[True, True, False, True], [True, False, True, True]]
    assert not (rechub.VocabMask(4).apply_mask(torch.zeros(1, 4)) < 0).any()
    with pytest.raises(DataError, match="same B"):
        mask.apply_mask(torch.zeros(2, 4), torch.zeros(3, 1, dtype=torch.long))


def test_metrics_by_hand():
    found = rechub.topk_metrics({"a": [7], "b": [1, 2], "c": []}, {"a": [5, 7], "b": [2], "c": [3]}, [2])
    gain = 1 / math.log2(3)
    ndcg = (gain + 1 / (1 + gain)) / 3
    assert found == {
        "NDCG": [f"NDCG@2: {round(ndcg, 4)}"],
        "MRR": ["MRR@2: 0.5"],
        "Recall": ["Recall@2: 0.5"],
        "Hit": ["Hit@2: 0.6667"],
        "Precision": ["Precision@2: 0.3333"],
    }


def test_pad_sequences_and_window_arrays():
    assert rechub.pad_sequences([[1, 2, 3], [4]], 2).tolist() == [[2, 3], [0, 4]]
    assert rechub.pad_sequences([[1, 2, 3], [4]], 2, "int64", "post", "post", 7).tolist() == [[1, 2], [4, 7]]
    assert rechub.pad_sequences([]).shape == (0, 0)
    rows = np.arange(8).reshape(2, 4)
    stored = {"seq_tokens": rows, "seq_positions": np.arange(4)[None].repeat(2, 0), "seq_time_diffs": rows}
    cut = window_arrays({**stored, "targets": np.array([1, 2])}, 3)
    assert cut["seq_tokens"].tolist() == [[1, 2, 3], [5, 6, 7]]
    assert cut["seq_positions"].tolist() == [[0, 1, 2]] * 2
    ragged = {"seq_tokens": [[1, 2], [3]], "seq_positions": [[0, 1], [0]], "seq_time_diffs": [[5, 0], [0]]}
    padded = window_arrays({**ragged, "targets": [3, 1]}, 3)
    assert padded["seq_tokens"].tolist() == [[0, 1, 2], [0, 0, 3]] and padded["targets"].tolist() == [3, 1]


def test_data_generator_splits_and_casts():
    rows = np.arange(40, dtype=np.int32).reshape(10, 4)
    generator = rechub.SequenceDataGenerator(rows, rows, np.arange(10, dtype=np.int32), rows)
    (loader,) = generator.generate_dataloader(4, shuffle=False)
    tokens, _, _, targets = next(iter(loader))
    assert (
        tokens.dtype == torch.int64
        and tokens.tolist() == rows[:4].tolist()
        and targets.tolist() == [0, 1, 2, 3]
    )
    sizes = [len(part.dataset) for part in generator.generate_dataloader(4, split_ratio=(0.7, 0.1, 0.2))]
    assert sizes == [7, 1, 2]
    with pytest.raises(ConfigError, match="sum 1"):
        generator.generate_dataloader(4, split_ratio=(0.7, 0.1))


@pytest.mark.parametrize("build", [
    hllm,
    lambda: hllm(state="rechub-doc", use_rel_pos_bias=True, use_time_embedding=False),
    hstu,
    lambda: hstu(tie_embeddings=False, use_output_bias=False, use_time_embedding=False),
    lambda: hstu(state="rechub-doc", num_time_buckets=7),
])  # fmt: skip
def test_checkpoint_brings_back_sizes_state_and_scores(tmp_path, build):
    model = build()
    write_model(tmp_path / "model.pth", {f"module.{k}": v for k, v in model.state_dict().items()})
    loaded = rechub.load_model(tmp_path / "model.pth")
    assert loaded.state == model.state and not loaded.training
    assert torch.equal(loaded(TOKENS, SECONDS), model(TOKENS, SECONDS))
    scores = rechub.score_windows(loaded, TOKENS, SECONDS, hide_seen=True)
    assert (scores[1, [0, 1, 2, 4]] < -1e8).all() and (scores[1, [3, 5]] > -1e8).all()


def test_rank_windows_feeds_the_metrics():
    rows = TOKENS.numpy()
    (loader,) = rechub.SequenceDataGenerator(
        rows, rows, np.array([1, 5]), SECONDS.numpy()
    ).generate_dataloader(1, shuffle=False)
    model = hllm()
    truth, ranked = rechub.rank_windows(model, loader, k=9, hide_seen=True)
    assert truth == {0: [1], 1: [5]}
    scores = rechub.score_windows(model, TOKENS, SECONDS)
    assert sorted(ranked[0][:3]) == [1, 2, 4] and sorted(ranked[1][:2]) == [3, 5]  # unseen items first
    assert ranked[1][0] == (3 if scores[1, 3] > scores[1, 5] else 5)
    assert rechub.topk_metrics(truth, ranked, [3])["Hit"] == ["Hit@3: 1.0"]


def test_checkpoint_errors(tmp_path):
    path = tmp_path / "model.pth"
    write_model(path, {"weight": torch.zeros(2)})
    with pytest.raises(ArtifactError, match="neither HLLM's nor HSTU's parameters, but weight"):
        rechub.load_model(path)
    write_model(path, hstu().state_dict())
    with pytest.raises(ConfigError, match="d_model=9 contradicts"):
        rechub.load_model(path, d_model=9)
    with pytest.raises(ArtifactError, match="does not fit state 'rechub-doc'"):
        rechub.load_model(path, state="rechub-doc", tie_embeddings=True, n_heads=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hllm(time_bucket_fn="sqr"), "unknown time_bucket_fn"),
        (lambda: hstu(score_norm="l1"), "unknown score_norm"),
        (lambda: hstu(temperature=0), "must be positive"),
        (lambda: rechub.HSTULayer(5, 2), "must be divisible"),
        (lambda: rechub.HLLMModel(vectors(), V, D + 4, H), r"item_embeddings\.shape\[1\]=4 != d_model=8"),
        (lambda: rechub.HLLMModel(vectors()[0], V, D, H), r"item_embeddings\.shape\[0\]=4 != vocab_size"),
        (lambda: hstu()(torch.ones(1, 9, dtype=torch.long)), "exceeds max_seq_len"),
        (lambda: rechub.RelativeBucketedTimeAndPositionBias(2, 4)(), "time_diffs"),
        (lambda: rechub.RelativeBucketedTimeAndPositionBias(2, 4)(seq_len=5), "exceeds max_seq_len"),
        (lambda: rechub.topk_metrics({1: [2]}, {1: [2]}, 5), "topKs=5"),
    ],
)
def test_case_e15_errors_are_value_errors_as_the_originals(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert isinstance(caught.value, HLLMError)


def test_case_e15_attributes_of_the_originals():
    model = hstu()
    assert (model.n_heads, model.n_layers) == (
        model.hstu_block.layers[0].n_heads,
        len(model.hstu_block.layers),
    )
    assert (model.tie_embeddings, model.use_output_bias, model.scale_input_embedding) == (True, True, False)
    arrays = [np.ones((3, 2), dtype=int), np.zeros((3, 2), dtype=int), np.arange(3), np.full((3, 2), 7)]
    generator = rechub.SequenceDataGenerator(*arrays)
    names = ("seq_tokens", "seq_positions", "targets", "seq_time_diffs")
    assert all(getattr(generator, name) is array for name, array in zip(names, arrays, strict=True))


@pytest.mark.parametrize("name", ["ndcg", "hit", "mrr", "recall", "precision"])
def test_case_e15_single_metrics(name):
    truth, ranked = {"0": [1, 2], "1": [0, 1, 2], "2": [2, 3]}, {"0": [0, 1], "1": [0, 1], "2": [2, 3]}
    expected = {"ndcg": "0.7956", "mrr": "0.8333", "recall": "0.7222", "hit": "0.7143", "precision": "0.8333"}
    found = getattr(rechub, f"{name}_score")(truth, ranked, topKs=(1, 2))
    assert len(found) == 2 and found[1].endswith(f"@2: {expected[name]}")
    assert getattr(rechub, f"{name}_score")(truth, {u: [*r, 9, 9, 9] for u, r in ranked.items()})[0].count(
        "@5: "
    )
