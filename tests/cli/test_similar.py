"""`hllm similar`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hllm.cli import main


def test_items_like_an_item(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["similar", str(run_folder), "--item", "006", "-k", "3", "--json", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3] and "006" not in {row["item_id"] for row in rows}
    assert main(["similar", str(run_folder), "--item", "006", "-k", "3", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(row["item_id"] in out for row in rows) and "(19" in out


def test_what_cannot_be_asked(run_folder: Path, fails: Callable[..., str]) -> None:
    assert "unknown item_id '9x'" in fails("similar", run_folder, "--item", "9x")
    assert "either an item (--item ID) or a text" in fails("similar", run_folder)
    assert "train with item_llm" in fails("similar", run_folder, "--text", "a film")
