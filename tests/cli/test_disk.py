"""Commands on failing disks and impossible paths, and two at once: one line, code 2, and once there is
room the same command works."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hllm import artifacts
from hllm.cli import main

Fails = Callable[..., str]


@pytest.mark.parametrize("limit", [200, 3_000, 40_000])
def test_case_e19_training_on_a_full_disk(
    tmp_path: Path,
    world_folder: Path,
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    full_disk: Callable[[int], None],
    limit: int,
) -> None:
    words = [
        "train",
        str(world_folder),
        "--preset",
        "sasrec",
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    full_disk(limit)
    capsys.readouterr()
    assert main([*words, *small]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # before it stands how far training came
    assert line.startswith("error: ") and "make room, then run the same command again" in line
    full_disk(0)
    assert main([*words, *small]) == 0
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_case_e19_other_writers_on_a_full_disk(
    tmp_path: Path, world_folder: Path, run_folder: Path, fails: Fails, full_disk: Callable[[int], None]
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(run_folder, run)
    shutil.copytree(world_folder, data, ignore=shutil.ignore_patterns("embeddings"))
    (tmp_path / "i.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"1,{i},{i}\n" for i in range(99))
    )
    commands = {
        "recommend": ["recommend", run, "-k", "5", "--out", tmp_path / "recs.parquet"],
        "recommend csv": ["recommend", run, "-k", "5", "--out", tmp_path / "recs.csv"],
        "embed": ["embed", data, "--item-llm", "random"],
        "prepare": [
            "data",
            "prepare",
            "tabular",
            "--interactions",
            tmp_path / "i.csv",
            "--out",
            tmp_path / "new",
        ],
        "report": ["report", run],
    }
    for name, words in commands.items():
        full_disk(100)
        assert "make room, then run the same command again" in fails(*words), name
        full_disk(0)
        assert main([str(word) for word in words]) == 0, name


def test_case_e19_paths(
    tmp_path: Path, world_folder: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "i.csv").write_text("user_id,item_id,timestamp\n1,1,1\n1,2,2\n1,3,3\n")
    for bad in (tmp_path / "loop", tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300)):
        fails("data", "prepare", "tabular", "--interactions", tmp_path / "i.csv", "--out", bad)
        fails("train", world_folder, "--preset", "sasrec", "--out", bad)
        fails("train", bad, "--preset", "sasrec", "--out", tmp_path / "run")
        fails("evaluate", bad)
        fails("recommend", bad)
        fails("report", bad)
        fails("data", "stats", bad)
    monkeypatch.setenv("HLLM_HOME", "~nouser")
    assert "Set HLLM_HOME to a folder" in fails("data", "prepare", "ml-100k", "--out", tmp_path / "run")
    gone = tmp_path / "gone"
    gone.mkdir()
    before = os.getcwd()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        line = fails("data", "prepare", "tabular", "--interactions", tmp_path / "i.csv", "--out", "here")
        assert "the working folder was deleted" in line
    finally:
        os.chdir(before)


def test_case_e18_two_trainings_into_one_folder(
    tmp_path: Path, world_folder: Path, small: list[str], fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hllm.artifacts.locks.WAIT_SECONDS", 0.1)
    words = [
        "train",
        str(world_folder),
        "--preset",
        "sasrec",
        "--out",
        str(tmp_path / "run"),
        "--device",
        "cpu",
    ]
    taken, done = threading.Event(), threading.Event()

    def other() -> None:
        with artifacts.locked(tmp_path / "run"):
            taken.set()
            done.wait(600)

    thread: Any = threading.Thread(target=other)
    thread.start()
    assert taken.wait(600)
    try:
        assert f"process {os.getpid()} is writing {tmp_path / 'run'} (" in fails(*words, *small)
    finally:
        done.set()
        thread.join()
    assert main([*words, *small]) == 0
