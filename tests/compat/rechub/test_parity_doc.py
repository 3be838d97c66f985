"""Our modules in state "rechub-doc" beside torch-rechub's code at commit c712aff.

That commit is no release: the tests run where its `torch_rechub` folder comes first on the path.
"""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hllm.compat import rechub as ours

pytest.importorskip("torch_rechub", reason="needs torch-rechub's source at commit c712aff on PYTHONPATH")
from torch_rechub.models.generative import HSTUModel as TheirHSTU

if "use_rel_pos_bias" not in inspect.signature(TheirHSTU).parameters:
    pytest.skip("the installed torch-rechub is not commit c712aff", allow_module_level=True)

from torch_rechub.basic import layers as their_layers
from torch_rechub.models.generative import HLLMModel as TheirHLLM
from torch_rechub.trainers import SeqTrainer as TheirTrainer
from torch_rechub.utils import data as their_data
from torch_rechub.utils import hstu_utils as their_utils

pytestmark = pytest.mark.rechub
V, D, H, L = 11, 8, 2, 7
DOC = {"state": "rechub-doc"}


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


@pytest.mark.parametrize("fn", ["sqrt", "log"])
def test_models(fn):
    tokens, seconds, _ = windows(vocab_size=V, length=L)
    vectors = torch.randn(V, D)
    sizes = {"d_model": D, "n_heads": H, "n_layers": 2, "max_seq_len": 9, "time_bucket_fn": fn}
    for buckets in ({}, {"num_time_buckets": 50}):
        theirs = TheirHLLM(vectors.clone(), V, **sizes, **buckets)
        assert_same_module(
            ours.HLLMModel(vectors.clone(), V, **sizes, **buckets, **DOC), theirs, tokens, seconds
        )
        for extras in ({}, {"use_rel_pos_bias": False}, {"use_time_embedding": False}):
            theirs = TheirHSTU(V, **sizes, dqk=3, dv=5, **buckets, **extras)
            mine = ours.HSTUModel(V, **sizes, dqk=3, dv=5, **buckets, **extras, **DOC)
            assert_same_module(mine, theirs, tokens, seconds)
            assert_same_module(mine, theirs, tokens)


def test_layers():
    x, bias = torch.randn(3, L, D), torch.randn(1, H, L, L)
    assert_same_module(ours.HSTULayerDoc(D, H, 3, 5), their_layers.HSTULayer(D, H, 3, 5), x, bias)
    assert_same_module(
        ours.HSTUBlock(D, H, 2, 3, 5, **DOC), their_layers.HSTUBlock(D, H, 2, 3, 5), x, rel_pos_bias=bias
    )


def test_equal_seeds_start_from_equal_weights():
    vectors = torch.randn(V, D)
    for mine, theirs in (
        (lambda: ours.HLLMModel(vectors, V, D, H, 2, **DOC), lambda: TheirHLLM(vectors, V, D, H, 2)),
        (lambda: ours.HSTUModel(V, D, H, 2, **DOC), lambda: TheirHSTU(V, D, H, 2)),
        (lambda: ours.RelPosBias(H, 9, **DOC), lambda: their_utils.RelPosBias(H, 9)),
    ):
        torch.manual_seed(3)
        found = mine().state_dict()
        torch.manual_seed(3)
        for name, value in theirs().state_dict().items():
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("loss", ["nce", "cross_entropy"])
@pytest.mark.parametrize("model", ["hllm", "hstu"])
def test_trainer_has_the_same_losses(tmp_path, loss, model):
    vectors = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
    tokens, seconds, targets = windows(n=40, length=L, vocab_size=V)
    arrays = (tokens.numpy(), np.arange(L)[None].repeat(40, 0), targets.numpy(), seconds.numpy())
    results: list = []
    for name, trainer_class, hllm, hstu, data, extra in (
        ("ours", ours.SeqTrainer, ours.HLLMModel, ours.HSTUModel, ours, DOC),
        ("theirs", TheirTrainer, TheirHLLM, TheirHSTU, their_data, {}),
    ):
        torch.manual_seed(5)
        net = (
            hllm(vectors, V, D, H, 2, 9, **extra)
            if model == "hllm"
            else hstu(V, D, H, 2, max_seq_len=9, **extra)
        )
        (tmp_path / name).mkdir()
        trainer = trainer_class(net, n_epoch=2, loss_type=loss, model_path=str(tmp_path / name), **extra)
        train, val, _ = data.SequenceDataGenerator(*arrays).generate_dataloader(
            8, split_ratio=(0.6, 0.2, 0.2)
        )
        history = trainer.fit(train, val)
        weights = torch.load(tmp_path / name / "model.pth", weights_only=True)
        results.append((history["val_loss"], history["val_accuracy"], weights))
    for found, expected in zip(results[0][:2], results[1][:2], strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for key, value in results[1][2].items():
        torch.testing.assert_close(results[0][2][key], value, rtol=1e-4, atol=1e-5)
    loaded = ours.load_model(tmp_path / "theirs" / "model.pth")
    assert loaded.state == "rechub-doc"
