"""Our modules beside torch-rechub 0.9's own: same weights, same numbers."""

from __future__ import annotations

import copy
import inspect
import pickle
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hllm.compat import rechub as ours

REASON = "needs torch-rechub 0.9 beside: pip install --no-deps torch-rechub scikit-learn tqdm pandas"
pytest.importorskip("torch_rechub", reason=REASON)
pytestmark = pytest.mark.rechub

from torch_rechub.basic import layers as their_layers  # noqa: E402
from torch_rechub.basic import loss_func as their_losses  # noqa: E402
from torch_rechub.basic import metric as their_metrics  # noqa: E402
from torch_rechub.models.generative import HLLMModel as TheirHLLM  # noqa: E402
from torch_rechub.models.generative import HSTUModel as TheirHSTU  # noqa: E402
from torch_rechub.trainers import SeqTrainer as TheirTrainer  # noqa: E402
from torch_rechub.utils import data as their_data  # noqa: E402
from torch_rechub.utils import hstu_utils as their_utils  # noqa: E402

V, D, H, L = 11, 8, 2, 7
TIMES = [(fn, unit) for fn in ("sqrt", "log") for unit in ("minutes", "seconds")]
PAIRS = [
    (ours.HLLMTransformerBlock, None),
    (ours.HLLMModel, TheirHLLM),
    (ours.HSTUModel, TheirHSTU),
    (ours.HSTULayer, their_layers.HSTULayer),
    (ours.HSTUBlock, their_layers.HSTUBlock),
    (ours.RelPosBias, their_utils.RelPosBias),
    (ours.RelativeBucketedTimeAndPositionBias, their_utils.RelativeBucketedTimeAndPositionBias),
    (ours.VocabMask, their_utils.VocabMask),
    (ours.SeqDataset, their_data.SeqDataset),
    (ours.SequenceDataGenerator, their_data.SequenceDataGenerator),
    (ours.SeqTrainer, TheirTrainer),
    (ours.NCELoss, their_losses.NCELoss),
    (ours.InBatchNCELoss, their_losses.InBatchNCELoss),
    (ours.topk_metrics, their_metrics.topk_metrics),
    (ours.pad_sequences, their_data.pad_sequences),
]


def assert_same_module(ours: nn.Module, theirs: nn.Module, *inputs: Tensor, **named: Tensor) -> None:
    """Same state_dict keys; with the same weights, same outputs and gradients to 1e-5."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    ours.eval(), theirs.eval()
    results = []
    for module in (ours, theirs):
        fresh = [
            x.detach().clone().requires_grad_(x.is_floating_point()) if x is not None else None
            for x in inputs
        ]
        out = module(*fresh, **named)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        module.zero_grad()
        (out * weights).sum().backward()
        gradients = {name: p.grad for name, p in module.named_parameters()}
        for i, x in enumerate(fresh):
            if x.requires_grad:
                gradients[f"input {i}"] = x.grad
        results.append((out.detach(), gradients))
    (out, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in expected_gradients.items():
        if gradient is None:
            assert gradients[name] is None, name
        else:
            scale = gradient.abs().max().clamp(min=1)
            torch.testing.assert_close(
                gradients[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5, msg=name
            )


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Replace all parameters, so that zero biases cannot hide a difference."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def windows(
    n: int = 5, length: int = 7, vocab_size: int = 11, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Left-padded tokens and seconds (n, length), targets (n,); row r has up to r + 2 events."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, vocab_size, (n, length), generator=generator)
    seconds = torch.randint(0, 10_000_000, (n, length), generator=generator).sort(1, descending=True).values
    seconds[:, -1] = 0
    padding = torch.arange(length) < (length - 2 - torch.arange(n)).unsqueeze(1)
    targets = torch.randint(1, vocab_size, (n,), generator=generator)
    return tokens.masked_fill(padding, 0), seconds.masked_fill(padding, 0), targets


@pytest.mark.parametrize(("mine", "original"), PAIRS, ids=lambda f: getattr(f, "__name__", ""))
def test_signatures_are_theirs(mine, original):
    if original is None:
        from torch_rechub.models.generative.hllm import HLLMTransformerBlock as original
    expected = list(inspect.signature(original).parameters)
    found = inspect.signature(mine).parameters
    positional = [name for name, p in found.items() if p.kind is not p.KEYWORD_ONLY]
    assert positional == expected
    # None stands for a default that the state decides.
    for name, parameter in inspect.signature(original).parameters.items():
        assert found[name].default in (parameter.default, None), name


def test_transformer_block():
    from torch_rechub.models.generative.hllm import HLLMTransformerBlock as TheirBlock

    x, bias = torch.randn(3, L, D), torch.randn(1, H, L, L)
    assert_same_module(ours.HLLMTransformerBlock(D, H, 0.1), TheirBlock(D, H, 0.1), x, bias)
    assert_same_module(ours.HLLMTransformerBlock(D, H, 0.1), TheirBlock(D, H, 0.1), x)


@pytest.mark.parametrize("fn", ["sqrt", "log"])
@pytest.mark.parametrize("extras", [(True, True), (False, True), (True, False)])
def test_hllm_model(fn, extras):
    tokens, seconds, _ = windows(vocab_size=V, length=L)
    vectors = torch.randn(V, D)
    vectors[0] = 0
    sizes = {"d_model": D, "n_heads": H, "n_layers": 2, "max_seq_len": 9, "num_time_buckets": 50}
    sizes |= {"use_rel_pos_bias": extras[0], "use_time_embedding": extras[1], "time_bucket_fn": fn}
    assert_same_module(
        ours.HLLMModel(vectors.clone(), V, **sizes), TheirHLLM(vectors.clone(), V, **sizes), tokens, seconds
    )
    assert_same_module(
        ours.HLLMModel(vectors.clone(), V, **sizes), TheirHLLM(vectors.clone(), V, **sizes), tokens
    )


@pytest.mark.parametrize(("fn", "unit"), TIMES)
def test_hstu_layer_and_block(fn, unit):
    tokens, seconds, _ = windows(vocab_size=V, length=L)
    x = torch.randn(len(tokens), L, D)
    sizes = {"d_model": D, "n_heads": H, "dqk": 3, "dv": 5, "dropout": 0.1, "max_seq_len": 9}
    sizes |= {
        "num_time_buckets": 40,
        "time_bucket_fn": fn,
        "time_bucket_unit": unit,
        "time_bucket_divisor": 0.7,
    }
    mask = tokens.ne(0)
    for mine, theirs in ((ours.HSTULayer, their_layers.HSTULayer), (ours.HSTUBlock, their_layers.HSTUBlock)):
        assert_same_module(mine(**sizes), theirs(**sizes), x, padding_mask=mask, time_diffs=seconds)
    # Without times the time table has no gradient on either side.
    assert_same_module(ours.HSTULayer(**sizes), their_layers.HSTULayer(**sizes), x)


@pytest.mark.parametrize(("fn", "unit"), TIMES)
@pytest.mark.parametrize(
    "scoring",
    [
        {},
        {"score_norm": "l2", "temperature": 0.05, "use_output_bias": False, "scale_input_embedding": True},
        {"tie_embeddings": False, "use_time_embedding": False},
        {"tie_embeddings": False, "use_output_bias": False},
    ],
)
def test_hstu_model(fn, unit, scoring):
    tokens, seconds, _ = windows(vocab_size=V, length=L)
    sizes = {"vocab_size": V, "d_model": D, "n_heads": H, "n_layers": 2, "dqk": 3, "dv": 5, "max_seq_len": 9}
    sizes |= {
        "num_time_buckets": 40,
        "time_bucket_fn": fn,
        "time_bucket_unit": unit,
        "time_bucket_divisor": 0.3,
    }
    assert_same_module(ours.HSTUModel(**sizes, **scoring), TheirHSTU(**sizes, **scoring), tokens, seconds)


def test_relative_position_bias():
    for length in (1, 6, 9, 40):
        mine, theirs = ours.RelPosBias(H, 9), their_utils.RelPosBias(H, 9)
        mine.load_state_dict(theirs.state_dict())
        assert torch.equal(mine(length), theirs(length))


@pytest.mark.parametrize(("fn", "unit"), TIMES)
def test_time_and_position_bias(fn, unit):
    _, seconds, _ = windows(vocab_size=V, length=L)
    both = [
        c(H, 9, 60, fn, 0.4, unit)
        for c in (ours.RelativeBucketedTimeAndPositionBias, their_utils.RelativeBucketedTimeAndPositionBias)
    ]
    assert_same_module(*both, seconds)
    assert torch.equal(both[0](seq_len=5), both[1](seq_len=5))


@pytest.mark.parametrize(("fn", "unit"), TIMES)
def test_time_buckets(fn, unit):
    from hllm.compat.rechub.states import time_buckets

    seconds = torch.tensor([[0, 1, 59, 60, 61, 3599, 3600, 86_400, 10**6, 10**8, 2 * 10**9, -5]])
    theirs = TheirHSTU(
        V, D, H, 1, num_time_buckets=200, time_bucket_fn=fn, time_bucket_unit=unit, time_bucket_divisor=0.3
    )
    assert torch.equal(time_buckets(seconds, 199, fn, unit, 0.3), theirs._time_diff_to_bucket(seconds))
    if unit == "minutes":
        hllm = TheirHLLM(torch.zeros(V, D), V, D, H, 1, num_time_buckets=200, time_bucket_fn=fn)
        assert torch.equal(time_buckets(seconds, 199, fn), hllm._time_diff_to_bucket(seconds))


def test_equal_seeds_start_from_equal_weights():
    vectors = torch.randn(V, D)
    for mine, theirs in (
        (lambda: ours.HLLMModel(vectors, V, D, H, 2), lambda: TheirHLLM(vectors, V, D, H, 2)),
        (lambda: ours.HSTUModel(V, D, H, 2), lambda: TheirHSTU(V, D, H, 2)),
    ):
        torch.manual_seed(3)
        found = mine().state_dict()
        torch.manual_seed(3)
        for name, value in theirs().state_dict().items():
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("targets", [[3, 0, 5, 1], [0, 0, 0, 0]])
def test_losses(reduction, targets):
    logits, target = torch.randn(4, V), torch.tensor(targets)
    hidden, items = torch.randn(4, D), torch.randn(V, D)
    for mine, theirs, inputs in (
        (ours.NCELoss(0.1, 0, reduction), their_losses.NCELoss(0.1, 0, reduction), (logits,)),
        (
            ours.InBatchNCELoss(0.2, 0, reduction),
            their_losses.InBatchNCELoss(0.2, 0, reduction),
            (hidden, items),
        ),
    ):
        both = []
        for module in (mine, theirs):
            leaves = [x.clone().requires_grad_() for x in inputs]
            loss = module(*leaves, target)
            loss.sum().backward()
            both.append([loss.detach(), *(x.grad for x in leaves)])
        for found, expected in zip(*both, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_vocab_mask():
    logits, seen = torch.randn(3, V), torch.tensor([[0, 0, 4], [0, 2, 2], [1, -3, 99]])
    mine, theirs = (c(V, [0, 7, 99]) for c in (ours.VocabMask, their_utils.VocabMask))
    assert torch.equal(mine.apply_mask(logits), theirs.apply_mask(logits))
    assert torch.equal(mine.apply_mask(logits, seen), theirs.apply_mask(logits, seen))
    assert torch.equal(mine.apply_mask(logits, seen[0]), theirs.apply_mask(logits, seen[0]))
    assert mine.state_dict().keys() == theirs.state_dict().keys()


def test_metrics():
    rng = random.Random(0)
    truth = {str(u): rng.sample(range(30), rng.randint(0, 4)) for u in range(60)}
    ranked = {str(u): rng.sample(range(30), 12) for u in range(60)}
    assert dict(ours.topk_metrics(truth, ranked, [1, 5, 12])) == dict(
        their_metrics.topk_metrics(truth, ranked, [1, 5, 12])
    )
    assert dict(ours.topk_metrics(truth, ranked)) == dict(their_metrics.topk_metrics(truth, ranked))


@pytest.mark.parametrize("padding", ["pre", "post"])
@pytest.mark.parametrize("truncating", ["pre", "post"])
@pytest.mark.parametrize("maxlen", [None, 2, 5])
def test_pad_sequences(padding, truncating, maxlen):
    rows = [[1, 2, 3], [], [4], [5, 6, 7, 8]]
    found = ours.pad_sequences(rows, maxlen, "int64", padding, truncating, 9.0)
    expected = their_data.pad_sequences(rows, maxlen, "int64", padding, truncating, 9.0)
    assert found.dtype == expected.dtype and np.array_equal(found, expected)


def _arrays(n=40):
    tokens, seconds, targets = windows(n=n, length=L, vocab_size=V)
    positions = np.arange(L)[None].repeat(n, 0)
    return tokens.int().numpy(), positions, targets.int().numpy(), seconds.numpy()


@pytest.mark.parametrize("ratio", [None, (0.7, 0.1, 0.2)])
def test_data_generator(ratio):
    both = []
    for module in (ours, their_data):
        torch.manual_seed(1)
        loaders = module.SequenceDataGenerator(*_arrays()).generate_dataloader(8, split_ratio=ratio)
        both.append([batch for loader in loaders for batch in loader])
    assert len(both[0]) == len(both[1])
    for found, expected in zip(*both, strict=True):
        for x, y in zip(found, expected, strict=True):
            assert x.dtype == y.dtype and torch.equal(x, y)


@pytest.mark.parametrize("loss", ["nce", "cross_entropy"])
@pytest.mark.parametrize("model", ["hllm", "hstu"])
def test_trainer_has_the_same_losses(tmp_path, loss, model):
    """One epoch with dropout and shuffling, then validation: equal seeds, equal histories and weights."""
    vectors = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
    results: list = []
    for name, trainer_class, hllm, hstu, data in (
        ("ours", ours.SeqTrainer, ours.HLLMModel, ours.HSTUModel, ours),
        ("theirs", TheirTrainer, TheirHLLM, TheirHSTU, their_data),
    ):
        torch.manual_seed(5)
        net = hllm(vectors, V, D, H, 2, 9) if model == "hllm" else hstu(V, D, H, 2, max_seq_len=9)
        (tmp_path / name).mkdir()
        trainer = trainer_class(
            net,
            n_epoch=2,
            loss_type=loss,
            model_path=str(tmp_path / name),
            earlystop_patience=9,
            scheduler_fn=torch.optim.lr_scheduler.StepLR,
            scheduler_params={"step_size": 1},
        )
        train, val, _ = data.SequenceDataGenerator(*_arrays()).generate_dataloader(
            8, split_ratio=(0.6, 0.2, 0.2)
        )
        history = trainer.fit(train, val)
        results.append((history, torch.load(tmp_path / name / "model.pth"), trainer.evaluate(val)))
    assert results[0][0].keys() == results[1][0].keys()
    for key, values in results[1][0].items():
        assert results[0][0][key] == pytest.approx(values, rel=1e-5, abs=1e-6), key
    for key, value in results[1][1].items():
        torch.testing.assert_close(results[0][1][key], value, rtol=1e-4, atol=1e-5)
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-5)


def test_their_code_reads_our_folder(tmp_path):
    """Windows, vocabulary and embeddings written by hllm, loaded as its run script loads them."""
    from hllm.compat.rechub.windows import leave_last_out
    from hllm.formats import rechub as folder

    n_items, n_users = 20, 6
    tokens = np.tile(np.arange(1, n_items + 1, dtype=np.int32), n_users)
    parts = leave_last_out(tokens, np.arange(len(tokens)) * 60, np.arange(n_users + 1) * n_items, L)
    folder.write_vocab(tmp_path, [100 + i for i in range(n_items)])
    folder.write_embeddings(tmp_path, "tinyllama", np.random.default_rng(0).normal(size=(n_items + 1, D)))
    loaders = []
    for split, part in parts.items():
        folder.write_windows(tmp_path, split, part)
        with open(tmp_path / f"{split}_data.pkl", "rb") as file:
            data = pickle.load(file)
        columns = (data["seq_tokens"], data["seq_positions"], data["targets"], data["seq_time_diffs"])
        loaders.append(their_data.SequenceDataGenerator(*columns).generate_dataloader(8)[0])
    vocab = pickle.loads((tmp_path / "vocab.pkl").read_bytes())
    vocab_size = max(vocab["item_to_idx"].values()) + 1
    vectors = torch.load(folder.embeddings_path(tmp_path, "tinyllama"))
    trainer = TheirTrainer(TheirHLLM(vectors, vocab_size, D, H, 1, L), n_epoch=1, model_path=str(tmp_path))
    history = trainer.fit(loaders[0], loaders[1])
    assert 0 < history["train_loss"][0] < 100 and len(loaders[2].dataset) == n_users
    assert ours.load_model(tmp_path / "model.pth").vocab_size == vocab_size


def test_their_checkpoint_loads_scores_and_ranks(tmp_path):
    tokens, seconds, targets = windows(vocab_size=V, length=L)
    vectors = torch.randn(V, D)
    vectors[0] = 0
    theirs = [
        TheirHLLM(vectors, V, D, H, 2, 9, num_time_buckets=50),
        TheirHSTU(V, D, H, 2, dqk=3, dv=5, max_seq_len=9),
        TheirHSTU(V, D, H, 1, tie_embeddings=False, use_time_embedding=False, max_seq_len=9),
    ]
    for model in theirs:
        randomise(model)
        torch.save(copy.deepcopy(model).state_dict(), tmp_path / "model.pth")
        loaded = ours.load_model(tmp_path / "model.pth")
        assert type(loaded).__name__ == type(model).__name__ and loaded.state == "rechub"
        torch.testing.assert_close(
            loaded(tokens, seconds), model.eval()(tokens, seconds), rtol=1e-5, atol=1e-5
        )
        loader = ours.SequenceDataGenerator(*_arrays()).generate_dataloader(8, shuffle=False)[0]
        truth, ranked = ours.rank_windows(loaded, loader, k=5, hide_seen=True)
        assert ours.topk_metrics(truth, ranked, [5])["NDCG"][0].startswith("NDCG@5: ")
        seen = {0, *_arrays()[0][0].tolist()}
        assert not seen & set(ranked[0])
    assert targets.shape == (5,)
