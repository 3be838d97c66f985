"""`hllm tune`: what it prints can be typed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from hllm.cli.app import main
from hllm.runs import tune as module

pytest.importorskip("optuna")


def test_the_printed_command_trains_the_best(
    world_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_train", _invented)
    small = [
        "--preset",
        "sasrec",
        "--device",
        "cpu",
        "--set",
        "d_model=8",
        "--set",
        "n_layers=1",
        "--set",
        "epochs=1",
    ]
    command = ["tune", str(world_folder), *small, "--budget", "30s", "--out", str(tmp_path / "search")]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert (
        "trial 2" in printed.err
        and "best validation ndcg@10 0.2000 (trial 2 of 3, 30 s); as it was 0.0000" in printed.out
    )
    line = next(line for line in printed.out.splitlines() if line.startswith("train it: hllm train"))
    typed = shlex.split(line.removeprefix("train it: hllm "))
    assert main([*typed, "--device", "cpu", "--no-evaluate"]) == 0
    assert (tmp_path / "search-best" / "config.json").is_file()


def _invented(search: Any, settings: Any, trial: Any, number: int, deadline: float) -> dict[str, Any]:
    return {"trial": number, "settings": dict(settings), "state": "complete", "value": number / 10, "epoch": 1,
            "epochs": 1, "seconds": 10.0, "values": [number / 10]}  # fmt: skip


def test_mistakes_are_told_in_a_line(
    world_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: str) -> str:
        assert main(["tune", *arguments]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ")
        return lines[-1]

    assert "no dataset" in fails(str(tmp_path / "nothing"))
    assert "for example 90s, 30m or 1h30m" in fails(str(world_folder), "--budget", "soon")
    assert "unknown preset" in fails(str(world_folder), "--preset", "hstuu")
    monkeypatch.setitem(sys.modules, "optuna", None)
    given = (str(world_folder), "--preset", "sasrec", "--out", str(tmp_path / "x"))
    assert "pip install 'hllm[tune]'" in fails(*given)
    assert not (tmp_path / "x").exists()
