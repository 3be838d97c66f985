"""SeqTrainer by hand-computed losses; test_parity.py trains it beside the original."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hllm.compat import rechub
from hllm.errors import ConfigError, HLLMError

TOKENS = np.array([[0, 1, 2], [1, 2, 3]])
TARGETS = np.array([3, 1])


class Table(nn.Module):
    """Logits (B, L, 4) that depend on the current token only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor([[0.0, 9, 9, 9], [0, 0, 1, 0], [50, 0, 0, 2], [50, 3, 0, 0]]))

    def forward(self, tokens: Tensor, seconds: Tensor) -> Tensor:
        return self.table[tokens]


def loader(batch_size: int = 2):
    zeros = np.zeros_like(TOKENS)
    return rechub.SequenceDataGenerator(TOKENS, zeros, TARGETS, zeros).generate_dataloader(
        batch_size, shuffle=False
    )[0]


def nll(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(x - logits[target]) for x in logits))


def test_every_position_counts_but_padding():
    """Tokens 1, 2, 3 predict their followers without item 0; the padded slot predicts nothing."""
    one, two, three = nll([0, 1, 0], 1), nll([0, 0, 2], 2), nll([3, 0, 0], 0)
    loss, accuracy = rechub.SeqTrainer(Table()).evaluate(loader())
    assert loss == pytest.approx((one + two + one + two + three) / 5, rel=1e-5)
    assert accuracy == 1


def test_the_document_counts_the_last_position_and_lets_padding_win():
    loss, accuracy = rechub.SeqTrainer(Table(), loss_type="nce", state="rechub-doc").evaluate(loader())
    expected = (nll([500, 0, 0, 20], 3) + nll([500, 30, 0, 0], 1)) / 2  # temperature .1
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == 0


def test_fit_saves_the_last_epoch_and_returns_a_history(tmp_path):
    model = Table()
    history = rechub.SeqTrainer(model, n_epoch=3, model_path=tmp_path / "new").fit(loader(1), loader(1))
    assert {k: len(v) for k, v in history.items()} == {"train_loss": 3, "val_loss": 3, "val_accuracy": 3}
    assert history["val_loss"][2] < history["val_loss"][0]
    saved = torch.load(tmp_path / "new" / "model.pth", weights_only=True)
    assert torch.equal(saved["table"], model.table.detach())


def test_early_stopping_restores_the_best_weights(tmp_path):
    model = Table()
    trainer = rechub.SeqTrainer(
        model, n_epoch=9, earlystop_patience=2, model_path=tmp_path, optimizer_fn=torch.optim.SGD
    )
    accuracies = iter([(1.0, 0.5), (1.0, 0.7), (1.0, 0.6), (1.0, 0.7)])
    seen = []

    def evaluate(_):
        seen.append(model.table.detach().clone())
        return next(accuracies)

    trainer.evaluate = evaluate
    history = trainer.fit(loader(), loader())
    assert history["val_accuracy"] == [0.5, 0.7, 0.6, 0.7]  # two epochs in a row without a better one
    assert torch.equal(model.table, seen[1]) and not torch.equal(seen[1], seen[3])


def test_case_e15_fit_tells_loss_and_accuracy_of_every_epoch(tmp_path, capsys):
    trainer = rechub.SeqTrainer(Table(), n_epoch=2, model_path=tmp_path)
    history = trainer.fit(loader(), loader())
    lines = [line for line in capsys.readouterr().err.splitlines() if "evaluating" in line]
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        loss, accuracy = history["val_loss"][epoch], history["val_accuracy"][epoch]
        assert line.startswith(f"epoch {epoch + 1}/2: evaluating: ")
        assert line.endswith(f"loss {loss:.4f}, accuracy {accuracy:.4f}")


def test_case_e15_early_stopper_counts_as_the_originals(tmp_path):
    trainer = rechub.SeqTrainer(Table(), earlystop_patience=2, model_path=tmp_path)
    stopper = trainer.early_stopper
    weights = {"w": torch.tensor([1.0])}
    assert [stopper.stop_training(v, weights) for v in (0.5, 0.5, 0.6, 0.1, 0.2)] == [*[False] * 4, True]
    weights["w"] += 1
    assert stopper.best_auc == 0.6 and stopper.best_weights == {"w": torch.tensor([1.0])}


def test_case_e15_next_token_loss_leaves_padding_out():
    """Of a window 0 0 5 6 with the target 7 the steps 5 -> 6 and 6 -> 7 count, over nine items."""
    trainer = rechub.SeqTrainer(Table(), loss_params={"ignore_index": 0, "reduction": "sum"})
    loss = trainer._compute_next_token_loss(
        torch.zeros(1, 4, 10), torch.tensor([[0, 0, 5, 6]]), torch.tensor([7])
    )
    assert loss.item() == pytest.approx(2 * math.log(9))


def test_scheduler_and_loggers_are_called(tmp_path):
    calls = []

    class Logger:
        def log_hyperparams(self, values):
            calls.append(("hyper", values["learning_rate"]))

        def log_metrics(self, values, step):
            calls.append((step, values["learning_rate"]))

        def finish(self):
            calls.append("finish")

    rechub.SeqTrainer(
        Table(),
        optimizer_params={"lr": 0.8},
        scheduler_fn=torch.optim.lr_scheduler.StepLR,
        scheduler_params={"step_size": 1, "gamma": 0.5},
        n_epoch=2,
        model_path=tmp_path,
        model_logger=[Logger()],
    ).fit(loader())
    assert calls == [("hyper", 0.8), (0, 0.8), (1, 0.4), "finish"]


def test_case_e15_what_is_not_here_says_what_is_possible():
    trainer = rechub.SeqTrainer(Table())
    with pytest.raises(HLLMError, match=r"print\(trainer\.model\) lists the layers"):
        trainer.visualization(depth=4)
    with pytest.raises(ConfigError, match="unknown loss_type 'ce'"):
        rechub.SeqTrainer(Table(), loss_type="ce")
