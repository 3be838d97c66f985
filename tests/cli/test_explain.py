"""`hllm explain`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hllm.cli import main


def test_words_and_json(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", str(run_folder), "--user", "u003", "--item", "006", "--device", "cpu"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "(006) for user u003: score " in out and "nearest in the history: " in out
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["user_id"] == "u003" and found["item_id"] == "006"
    assert sum(reason["share"] for reason in found["reasons"]) == pytest.approx(1, abs=1e-6)
    assert main(["explain", str(run_folder), "--history", "001, 002", "--item", "006", "--shown", "1"]) == 0
    assert "for this history" in capsys.readouterr().out


def test_mistakes(run_folder: Path, fails: Callable[..., str]) -> None:
    assert "unknown user_id 'ghost'" in fails("explain", run_folder, "--user", "ghost", "--item", "006")
    assert "either a user" in fails("explain", run_folder, "--item", "006")
    assert "--item" in fails("explain", run_folder, "--user", "u003")
