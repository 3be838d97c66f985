"""A batch that fits: found in halves, named or taken, and found again in an interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hllm import pipeline
from hllm.artifacts import read_json
from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.errors import DeviceError
from hllm.hardware import is_out_of_memory
from hllm.runs.auto_batch import (
    PROBE_STEPS,
    BatchSize,
    fits,
    memory_needed,
    memory_warning,
    probe,
    with_fitting_batch,
)
from hllm.runs.folder import saved_identity
from hllm.train import trainer

SMALL = {
    "d_model": 16, "n_layers": 1, "n_heads": 2, "max_len": 8, "epochs": 2, "batch_tokens": 80,
}  # fmt: skip


def ignore(_: str) -> None:
    """Nobody listens."""


def limited(most: int) -> Any:
    """Work on a machine whose memory holds a batch of `most`."""

    def work(size: int) -> int:
        if size > most:
            raise MemoryError
        return size

    return work


def test_the_largest_half_that_fits_is_taken() -> None:
    work, said = limited(100), []
    assert with_fitting_batch(work, work, BatchSize(64, False, ignore)) == 64
    assert with_fitting_batch(work, work, BatchSize(1000, True, said.append)) == 62
    assert said == ["out of memory with --set batch_tokens=1000; going on with 62, which fits"]
    with pytest.raises(DeviceError, match="62 fits: type --size 62, or --auto-batch"):
        with_fitting_batch(work, work, BatchSize(1000, False, ignore, "--size {}"))
    with pytest.raises(DeviceError, match="with a batch of 1 as well"):
        with_fitting_batch(limited(0), limited(0), BatchSize(8, True, ignore))


def test_where_the_whole_needs_more_than_its_first_steps_the_next_size_has_its_turn() -> None:
    tried: list[int] = []

    def work(size: int) -> int:
        tried.append(size)
        return int(limited(20)(size))

    assert with_fitting_batch(work, limited(100), BatchSize(400, True, ignore)) == 12
    assert tried == [400, 100, 50, 25, 12]
    with pytest.raises(DeviceError, match="100 fits"):
        with_fitting_batch(work, limited(100), BatchSize(400, False, ignore))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_fits_hides_no_other_fault() -> None:
    def broken() -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        fits(broken)


def test_the_run_records_the_size_that_was_taken_and_goes_on_with_it(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run of a smaller batch is continued, without trying the larger one again."""
    config = load_config("sasrec", overrides=SMALL)
    train, steps, step = pipeline.train_network, [], trainer.Trainer._step

    def small(data: Dataset, config: Any, *rest: Any) -> Any:
        if config.training.batch_tokens > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(data, config, *rest)

    def interrupted(self: Any, *arguments: Any) -> Any:
        steps.append(self.state.step)
        if len(steps) == 3:
            raise trainer.Stopped("stopped after step 2")
        return step(self, *arguments)

    batch = BatchSize(80, True, ignore)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_network", small)
        patch.setattr(pipeline, "probe", lambda data, config, *_: limited(20)(config.training.batch_tokens))
        patch.setattr(trainer.Trainer, "_due", lambda self: True)
        patch.setattr(trainer.Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt, match="Go on with the same command"):
            pipeline.fit_run(data, config, tmp_path / "run", None, batch, device="cpu")
    recorded = batch.as_recorded(tmp_path / "run", data, config, None)
    assert recorded.size == 20
    assert BatchSize(80, False, ignore).as_recorded(tmp_path / "run", data, config, None).size == 80
    pipeline.fit_run(data, config, tmp_path / "run", None, recorded, device="cpu", resume=True)
    assert read_json(tmp_path / "run" / "config.json")["config"]["training"]["batch_tokens"] == 20
    identity = saved_identity(tmp_path / "run")
    assert identity is not None and identity["config"]["training"]["batch_tokens"] == 20
    whole = pipeline.fit_run(data, batch.config(config, 20), tmp_path / "b", None, recorded, device="cpu")
    again = pipeline.Recommender.from_pretrained(tmp_path / "run", "cpu")
    assert whole.network is not None and again.network is not None
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


def test_probe_takes_a_few_steps(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("sasrec", overrides={**SMALL, "batch_tokens": 10})
    taken: list[int] = []
    step = trainer.Trainer._step

    def counting(self: trainer.Trainer, *arguments: Any) -> torch.Tensor:
        taken.append(1)
        return step(self, *arguments)

    monkeypatch.setattr(trainer.Trainer, "_step", counting)
    probe(data, config, None, torch.device("cpu"))
    assert len(taken) == PROBE_STEPS


def test_larger_batches_need_more_memory(data: Dataset) -> None:
    config = load_config("sasrec", overrides=SMALL)
    larger = memory_needed(data, config.model_copy(update={"batch_tokens": 800}), None)
    assert memory_needed(data, config, None) < larger


def test_memory_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    gib, gpu = 2**30, torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * gib, 4 * gib))
    assert memory_warning(gpu, gib, "x") is None
    assert memory_warning(torch.device("cpu"), 99 * gib, "x") is None
    text = memory_warning(gpu, 16 * gib, "--model_type tinyllama")
    assert text is not None
    assert "16.0 GiB" in text and "2.0 of 4.0 GiB" in text and "--model_type tinyllama" in text
