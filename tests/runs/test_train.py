"""What a trainer of a configuration is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hllm.config import load_config
from hllm.packing import ItemView
from hllm.runs.train import make_trainer
from hllm.testing import world

SMALL = {"d_model": 8, "n_layers": 1, "n_heads": 2, "max_len": 4, "batch_tokens": 4, "loss": "sampled"}


@pytest.mark.parametrize("settings", [{"mask_history": True}, {"negatives_by": "hard"}])
@pytest.mark.parametrize("reverse", [False, True])  # rows of a view need not be in the tokens' order
def test_what_lies_outside_the_window_is_no_negative_either(settings: dict[str, Any], reverse: bool) -> None:
    """By value and gradient: negatives of the user's whole training history count for nothing, others do."""
    data = world(n_users=12)
    histories = data.train_histories()
    config = load_config("sasrec", overrides={**SMALL, "logq": False, **settings})
    trainer: Any = make_trainer(data, histories, config, None, torch.device("cpu"), None, False)
    batch = next(b for b in trainer.loader.epoch(0) if b.n_users == 1 and b.n_tokens == 4)
    row = int(np.flatnonzero(histories.users == int(batch.users[0]))[0])
    own = torch.from_numpy(histories.tokens[slice(*histories.offsets[row : row + 2])].astype(np.int64))
    outside = own[~torch.isin(own, torch.cat((batch.tokens, batch.targets)))].unique()
    tokens = torch.arange(1, data.n_catalogue + 1)
    tokens = tokens.flip(0) if reverse else tokens
    rows = torch.zeros(data.n_catalogue + 1, dtype=torch.long)
    rows[tokens] = torch.arange(len(tokens))
    stranger = tokens[~torch.isin(tokens, own)][:1]
    vectors, queries = torch.randn(len(tokens), 8, requires_grad=True), torch.randn(batch.n_tokens, 8)

    def loss_and_gradient(negatives: Tensor) -> tuple[float, Tensor]:
        view = ItemView(
            tokens, rows[batch.tokens], rows[batch.targets], len(tokens), negatives=rows[negatives]
        )
        loss = trainer.step.objective(queries, vectors, replace(batch, n_targets=None), view)
        return loss.item(), torch.autograd.grad(loss, vectors)[0]

    assert len(outside) > 1
    loss, gradient = loss_and_gradient(outside)
    assert loss == 0 and not gradient.any()
    loss, gradient = loss_and_gradient(torch.cat((outside, stranger)))
    alone, expected = loss_and_gradient(stranger)
    assert loss == pytest.approx(alone) and loss > 0
    torch.testing.assert_close(gradient, expected)
