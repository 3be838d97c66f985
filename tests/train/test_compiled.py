"""Compiled blocks compute what plain ones do, act inside `run` alone, and failing leaves a plain step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hllm.config import Config, load_config
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Dataset
from hllm.models.user_models import make_user_model
from hllm.packing import Batch, make_rows, offsets_of
from hllm.train import compiled
from hllm.train.compiled import CompiledBlocks, blocks_of, is_worth_compiling

WIDTH = 16


def model_and_loss(preset: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A user model without dropout, and the loss of a batch that trains it."""
    small = {"n_layers": 2, "n_heads": 2, "dropout": 0.0, "max_len": 20}
    own: dict[str, Any] = {"item_llm": "random"} if preset == "rechub" else {"d_model": WIDTH}
    config = load_config(preset, overrides={**small, **own})
    torch.manual_seed(0)
    model = make_user_model(config.users, config.scorer, WIDTH, 20)
    assert isinstance(model, nn.Module)
    lengths = torch.tensor([5, 9, 2])
    ones = torch.ones(16, dtype=torch.long)
    batch = Batch(torch.arange(3), ones, torch.arange(16) ** 3, ones, offsets_of(lengths))
    x, rows = torch.randn(16, WIDTH), make_rows(batch, 16)
    model.eval()  # inputs are not masked at random

    def loss() -> Tensor:
        model.zero_grad()
        value = model(x, rows, batch.signals).pow(3).sum()
        value.backward()
        return value.detach()

    return model, loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("preset", ["sasrec", "hstu", "sasrec-paper", "rechub"])
def test_equals_the_plain_model(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced whole, without a break in the graph; the compiler's own arithmetic is not run here."""
    whole = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(compiled.torch, "compile", whole)
    model, loss = model_and_loss(preset)
    expected, plain = loss(), gradients(model)
    blocks = CompiledBlocks([(block, "forward") for block in blocks_of(model)])
    assert len(blocks.parts) == 2
    torch.testing.assert_close(blocks.run(loss), expected)
    assert blocks.seconds is not None and not blocks.failed
    torch.testing.assert_close(gradients(model), plain)
    torch.testing.assert_close(blocks.run(loss), expected)
    assert not any("forward" in vars(block) for block, _ in blocks.parts)


def test_what_fails_to_compile_runs_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler here\nand a trace")

    monkeypatch.setattr(compiled.torch, "compile", lambda function, dynamic: broken)
    model, loss = model_and_loss("sasrec")
    expected, plain = loss(), gradients(model)
    blocks = CompiledBlocks([(block, "forward") for block in blocks_of(model)])
    with pytest.warns(UserWarning, match="not compiled, training goes on without: no compiler here$"):
        assert torch.equal(blocks.run(loss), expected)
    torch.testing.assert_close(gradients(model), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(blocks.run(loss), expected)  # said once
    assert blocks.failed and blocks.seconds is None


def test_a_lack_of_memory_is_no_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compiled.torch, "compile", lambda function, dynamic: full)
    model, loss = model_and_loss("sasrec")
    with pytest.raises(torch.OutOfMemoryError):
        CompiledBlocks([(block, "forward") for block in blocks_of(model)]).run(loss)


def test_only_long_trainings_are_worth_it(
    data: Dataset, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = data.train_histories()
    loader = TrainLoader(histories, 5, 80, 0)
    tokens = np.minimum(np.diff(histories.offsets) - 1, 5).sum()
    training = make_config(epochs=7).training
    monkeypatch.setattr(compiled, "WORTH", int(tokens) * 7 * 2 * 16 - 1)
    assert is_worth_compiling(loader, training, 2, 16)
    monkeypatch.setattr(compiled, "WORTH", int(tokens) * 7 * 2 * 16)
    assert not is_worth_compiling(loader, training, 2, 16)


def test_compiling_needs_captured_steps(train: Callable[..., Any]) -> None:
    with pytest.warns(UserWarning, match="acts on captured steps"):
        train(compile=True, epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(compile=False, epochs=1)
        train(epochs=1)
