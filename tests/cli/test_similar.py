"""`hllm similar`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hllm.artifacts import write_text
from hllm.cli import main


def test_items_like_an_item(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["similar", str(run_folder), "--item", "006", "-k", "3", "--json", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rank"] for row in rows] == [1, 2, 3] and "006" not in {row["item_id"] for row in rows}
    assert main(["similar", str(run_folder), "--item", "006", "-k", "3", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(row["item_id"] in out for row in rows) and "(19" in out


def test_under_rules(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same rules as of `recommend`, with the same items left."""
    write_text(tmp_path / "only.txt", "001\n002\n003\n004\n007\n")
    write_text(tmp_path / "never.csv", "item_id\n002\n")
    arguments = [
        "similar", str(run_folder), "--item", "006", "-k", "9", "--json", "--device", "cpu", "--exclude", "003",
        "--only-items", str(tmp_path / "only.txt"), "--exclude-items", str(tmp_path / "never.csv"), "--with", "genres",
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["item_id"] for row in rows} == {"001", "004", "007"}
    genre = rows[0]["genres"]
    assert main([*arguments, "--only", f"genres={genre}"]) == 0
    fewer = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["item_id"] for row in fewer] == [row["item_id"] for row in rows if row["genres"] == genre]


def test_what_cannot_be_asked(run_folder: Path, fails: Callable[..., str]) -> None:
    assert "unknown item_id '9x'" in fails("similar", run_folder, "--item", "9x")
    assert "either an item (--item ID) or a text" in fails("similar", run_folder)
    assert "train with item_llm" in fails("similar", run_folder, "--text", "a film")
