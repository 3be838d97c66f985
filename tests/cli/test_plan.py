"""`hllm plan` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hllm.cli import main
from hllm.testing import world


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "world"
    world().save(folder)
    return folder


def test_a_plan_names_memory_hours_and_cost(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", str(dataset), "--gpus", "8", "--strategy", "zero2", "--price", "2"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "8 h100 by zero2" in shown and "bottleneck" in shown and "cost" in shown
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["gpus"] == 8 and len(document["memory"]) == 5 and document["cost"] > 0
    assert document["memory"][0]["total"] > document["memory"][3]["total"]


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--gpu", "tpu"], "unknown GPU 'tpu'"), (["--strategy", "all"], "unknown strategy 'all'"),
     (["--set", "epoch=3"], "unknown setting"), (["--gpus", "0"], "gpus")],
)  # fmt: skip
def test_mistakes_are_one_line(
    dataset: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(dataset), *more]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
