"""One training of `hllm train`: it goes on after any interruption, and says what it lacks."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hllm import pipeline, progress
from hllm.artifacts import read_json, read_jsonl
from hllm.cli import main
from hllm.data.folder import own_names
from hllm.train import trainer
from hllm.train.trainer import Stopped

Fails = Callable[..., str]
Capture = pytest.CaptureFixture[str]


def test_case_d15_ctrl_c_and_kill(
    command: Callable[..., list[str]],
    run_folder: Path,
    tmp_path: Path,
    capsys: Capture,
    run_python: Any,
    monkeypatch: pytest.MonkeyPatch,
    breaking: Callable[..., str],
) -> None:
    """Ctrl-C, then kill -9 in the run that goes on, then the same command: the same bytes as without."""
    run = tmp_path / "run"

    def broken(step: int, name: str) -> subprocess.CompletedProcess[str]:
        return run_python("-c", breaking(step, name), *command(run))

    done = broken(3, "SIGINT")
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "stopped after step 4 (epoch 2); everything is saved. Go on with"
    )
    assert done.stderr.splitlines()[-1].endswith("Go on with the same command")
    done = broken(7, "SIGKILL")
    assert done.returncode == -signal.SIGKILL
    assert "going on from its last checkpoint" in done.stderr
    assert not (run / "config.json").exists() and not (run / "model.safetensors").exists()
    steps: list[int] = []
    step = trainer.Trainer._step
    monkeypatch.setattr(
        trainer.Trainer, "_step", lambda self, *a: (steps.append(self.state.step), step(self, *a))[1]
    )
    assert main(command(run, "--resume")) == 0
    assert steps == list(range(7, read_jsonl(run / "history.jsonl")[-1]["step"]))  # none is done twice
    assert "going on from its last checkpoint" in capsys.readouterr().err
    for name in ("model.safetensors", "history.jsonl"):
        assert (run / name).read_bytes() == (run_folder / name).read_bytes(), name
    mine, theirs = (read_json(folder / "metrics.json")["test"] for folder in (run, run_folder))
    assert mine == theirs


def test_killed_before_the_first_checkpoint(
    command: Callable[..., list[str]],
    run_folder: Path,
    tmp_path: Path,
    run_python: Any,
    breaking: Callable[..., str],
) -> None:
    run = tmp_path / "run"
    code = breaking(2, "SIGKILL", saves=False)
    assert run_python("-c", code, *command(run)).returncode == -signal.SIGKILL
    assert own_names(run) == {"data"}
    assert main(command(run)) == 0
    assert (run / "model.safetensors").read_bytes() == (run_folder / "model.safetensors").read_bytes()


def test_an_unfinished_run_is_no_run_yet(
    command: Callable[..., list[str]],
    tmp_path: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    step = trainer.Trainer._step

    def full(self: Any, *arguments: Any) -> Any:
        if self.state.step == 2:
            raise OSError("the disk is gone")
        return step(self, *arguments)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_due", lambda self: True)
        patch.setattr(trainer.Trainer, "_step", full)
        with pytest.raises(OSError, match="the disk is gone"):
            main(command(run))
    for name in ("evaluate", "recommend"):
        assert "is not finished; go on with the same hllm train command" in fails(name, run)
    line = fails(*command(run, "--set", "dropout=0.1"))
    assert "holds another run (dropout 0.5 -> 0.1)" in line
    assert main(command(run, "--set", "dropout=0.1", "--overwrite")) == 0


def test_resume_goes_before_overwrite(
    command: Callable[..., list[str]], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C the advice is the same command, without --overwrite where it had that; or --resume beside it."""
    step = trainer.Trainer._step

    def interrupted(self: Any, *arguments: Any) -> Any:
        if self.state.step == 5:
            raise Stopped("stopped after step 5")
        return step(self, *arguments)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_due", lambda self: True)
        patch.setattr(trainer.Trainer, "_step", interrupted)
        assert main(command(run, "--overwrite")) == 130
    assert "Go on with the same command, without --overwrite" in capsys.readouterr().err
    assert main(command(run, "--overwrite", "--resume")) == 0
    assert "going on from its last checkpoint" in capsys.readouterr().err


def test_out_of_memory_names_smaller_settings(
    command: Callable[..., list[str]], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(trainer.Trainer, "fit", full)
    assert main(command(tmp_path / "run", "--set", "batch_tokens=64")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        "out of memory with --set batch_tokens=64; 32 fits: type --set batch_tokens=32, or --auto-batch"
        in line
    )


def test_auto_batch_takes_the_size_that_fits_and_records_it(
    command: Callable[..., list[str]], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, auto = pipeline.train_network, ("--set", "batch_tokens=128", "--auto-batch")

    def small(data: Any, config: Any, *rest: Any) -> Any:
        if config.training.batch_tokens > 64:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return train(data, config, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_network", small)
        assert main(command(tmp_path / "run", *auto)) == 0
    said = "out of memory with --set batch_tokens=128; going on with 64, which fits"
    assert said in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "config.json")["config"]["training"]["batch_tokens"] == 64
    assert main(command(tmp_path / "run", *auto)) == 0
    err = capsys.readouterr().err
    assert "holds this run, finished" in err and said not in err


def test_progress_counts_absolute_epochs_after_a_break(
    command: Callable[..., list[str]], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer.Trainer._step

    def interrupted(self: Any, *arguments: Any) -> Any:
        if self.state.epoch == 1 and self.state.step_in_epoch == 2:
            raise Stopped("stopped")
        return step(self, *arguments)

    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_due", lambda self: True)
        patch.setattr(trainer.Trainer, "_step", interrupted)
        assert main(command(tmp_path / "run")) == 130
    assert "train: epoch 1/3, 0/" in capsys.readouterr().err
    assert main(command(tmp_path / "run")) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train: ")]
    assert lines[0].startswith("train: epoch 2/3, 2/") and lines[0].endswith(" steps")
    assert any(line.startswith("train: epoch 3/3, ") for line in lines)
    assert lines[-1].startswith("train: 2 epochs in ")


def test_nothing_to_resume(command: Callable[..., list[str]], tmp_path: Path, capsys: Capture) -> None:
    assert main(command(tmp_path / "run", "--resume", "--set", "epochs=1")) == 0
    assert "nothing to resume" in capsys.readouterr().err
