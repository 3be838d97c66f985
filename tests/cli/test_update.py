"""`hllm update`: once, whatever is interrupted or repeated, and with its lineage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from hllm.artifacts import read_json, write_text
from hllm.cli import main

Capture = pytest.CaptureFixture[str]
Fails = Callable[..., str]
NEW = "user_id,item_id,timestamp\nu003,006,1100000000\nbrandnew,001,1100000000\nbrandnew,002,1100000001\n"


def test_an_update_is_made_once(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    new, out = tmp_path / "new.csv", tmp_path / "run2"
    write_text(new, NEW)
    config = (run_folder / "config.json").read_bytes()
    arguments = ["update", str(run_folder), "--interactions", str(new), "--out", str(out), "--device", "cpu"]
    assert main(arguments) == 0
    assert "3 new events, 1 new users, 0 new items, without training; run in" in capsys.readouterr().out
    before = (out / "config.json").read_bytes()
    assert main(arguments) == 0
    assert "holds this update already (3 new events)" in capsys.readouterr().out
    assert (out / "config.json").read_bytes() == before and (
        run_folder / "config.json"
    ).read_bytes() == config
    (step,) = read_json(out / "config.json")["lineage"]
    assert step["parent"] == read_json(run_folder / "config.json")["created"]
    assert main(["recommend", str(out), "--user", "brandnew", "-k", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("brandnew") == 3
    # Half written, as after a kill: the mark is missing, and the same command makes it whole.
    (out / "config.json").unlink()
    assert main(arguments) == 0
    assert main(["recommend", str(out), "--user", "brandnew", "--device", "cpu"]) == 0
    third = ["update", str(out), "--interactions", str(new), "--out", str(tmp_path / "run3"), "--train"]
    capsys.readouterr()
    assert main([*third, "--set", "epochs=1", "--device", "cpu"]) == 0
    told = capsys.readouterr()
    assert "0 new events" in told.out and "3 events were known already" in told.err
    assert [s["trained"] for s in read_json(tmp_path / "run3" / "config.json")["lineage"]] == [False, True]
    write_text(new, NEW + "u004,001,1100000000\n")
    assert "holds another run" in fails(*arguments)
    assert main([*arguments, "--overwrite"]) == 0


def test_mistakes(run_folder: Path, tmp_path: Path, fails: Fails) -> None:
    out = tmp_path / "run2"
    write_text(tmp_path / "new.csv", NEW)
    pl.DataFrame({"user_id": ["u003"], "item_id": ["006"]}).write_csv(tmp_path / "no-time.csv")
    for options, message in (
        (["--interactions", tmp_path / "none.csv", "--out", out], "none.csv not found"),
        (["--interactions", tmp_path / "no-time.csv", "--out", out], "no column 'timestamp'"),
        (["--interactions", tmp_path / "new.csv", "--out", run_folder], "is the run itself"),
        (["--interactions", tmp_path / "new.csv", "--out", out, "--set", "epochs=2"], "--train"),
        (["--interactions", tmp_path / "new.csv", "--out", tmp_path], "holds no run"),
    ):
        assert message in fails("update", run_folder, *options)
    assert not out.exists()


def test_columns_may_have_other_names(
    run_folder: Path, tmp_path: Path, capsys: Capture, fails: Fails
) -> None:
    new = tmp_path / "new.csv"
    write_text(
        new, NEW.replace("user_id", "customer").replace("item_id", "product").replace("timestamp", "when")
    )
    arguments = ["update", str(run_folder), "--interactions", str(new), "--device", "cpu"]
    named = ["--user-col", "customer", "--item-col", "product", "--time-col", "when"]
    assert main([*arguments, "--out", str(tmp_path / "run2"), *named]) == 0
    assert "3 new events, 1 new users, 0 new items" in capsys.readouterr().out
    assert "--user-col NAME" in fails(*arguments, "--out", str(tmp_path / "run3"))
    assert "has no column 'who'" in fails(*arguments, "--out", str(tmp_path / "run3"), "--user-col", "who")
