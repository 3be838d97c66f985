"""`hllm demo` from end to end, on a small world in the place of MovieLens-100K."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hllm import artifacts
from hllm.artifacts import read_json
from hllm.cli import main
from hllm.testing import world

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("HLLM_HOME", str(tmp_path / "home"))
    world(n_users=50).save(artifacts.home() / "datasets" / "ml-100k")
    given = ["demo", "--item-llm", "tfidf", "--out", str(tmp_path / "demo"), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["hllm", *given])  # what the run's record names as its command
    return given


def test_from_data_to_report(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    stages = [line for line in err.splitlines() if re.match(r"\d/5 ", line)]
    assert [line[0] for line in stages] == ["1", "2", "3", "4", "5"]
    assert "42 texts encoded, 0 reused" in err
    run = tmp_path / "demo"
    metrics = read_json(run / "metrics.json")
    own, popularity = (
        metrics["test"]["ndcg@10"],
        metrics["baselines"]["test"]["popularity"]["ndcg@10"],
    )
    assert own > popularity
    last = out.strip().splitlines()[-1]
    expected = f"test NDCG@10 {own:.4f}, {own / popularity:.2f} times popularity's {popularity:.4f}; "
    assert last.startswith(expected)
    assert re.search(r"everything took \d", last)
    assert f"report: {run / 'report.html'}" in out
    assert (run / "report.html").stat().st_size > 5_000
    record = read_json(run / "config.json")
    assert record["config"]["preset"] == "demo" and record["embeddings"]["model"] == "tfidf"
    shown = [line.split()[0] for line in out.splitlines() if re.match(r"\s*10[0-2]\s+[1-5]\s", line)]
    assert shown == ["100"] * 5 + ["101"] * 5 + ["102"] * 5


def test_again_and_after_an_interruption(
    arguments: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished demo is made anew with the same result; an interrupted one goes on."""
    from hllm.train import trainer

    step: Callable = trainer.Trainer._step

    def interrupted(self: trainer.Trainer, *given: object) -> object:
        if self.state.step == 3:
            raise KeyboardInterrupt
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_due", lambda self: True)
        patch.setattr(trainer.Trainer, "_step", interrupted)
        assert main(arguments) == 130
        assert "--resume" not in capsys.readouterr().err  # which this command has not
    assert not (tmp_path / "demo" / "config.json").exists()
    assert main(arguments) == 0
    assert "going on from its last checkpoint" in capsys.readouterr().err
    weights = (tmp_path / "demo" / "model.safetensors").read_bytes()
    created = read_json(tmp_path / "demo" / "config.json")["created"]
    monkeypatch.setattr("sys.argv", ["hllm", *arguments, "--seed", "0"])
    assert main(arguments) == 0
    assert "0 texts encoded, 42 reused" in capsys.readouterr().err
    assert (tmp_path / "demo" / "model.safetensors").read_bytes() == weights
    assert read_json(tmp_path / "demo" / "config.json")["command"].endswith("--seed 0")
    assert created


def test_the_run_of_another_command_is_left_alone(
    arguments: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["hllm", "train", "mine"])
    assert main(arguments) == 0
    weights = (tmp_path / "demo" / "model.safetensors").read_bytes()
    assert main(arguments) == 2
    assert (
        "holds the run of another command (hllm train mine); choose another --out" in capsys.readouterr().err
    )
    assert (tmp_path / "demo" / "model.safetensors").read_bytes() == weights


def test_mistakes(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main([*arguments, "--device", "gpu"]) == 2
    assert "unknown device 'gpu'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").touch()
    assert main(arguments) == 2
    assert "holds no run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "demo").iterdir()] == ["thesis.tex"]
