"""One writer a folder, across processes, threads and kills."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hllm import artifacts
from hllm.artifacts import Busy

HOLD = """
import sys
from hllm.artifacts import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(folder)]
    other = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    return other


def test_case_e18_the_second_is_told_who_writes_until_the_first_is_dead(tmp_path: Path) -> None:
    with hold(tmp_path / "d") as other:
        with pytest.raises(
            Busy, match=rf"process {other.pid} is writing .*d \(-c .*since 20.*same command again"
        ):
            artifacts.locked(tmp_path / "d", wait=0.1).__enter__()
        other.kill()
    with artifacts.locked(tmp_path / "d"):
        pass
    assert list((tmp_path / "d").iterdir()) == []


def test_case_e18_the_second_waits_for_one_that_ends_soon(tmp_path: Path) -> None:
    with hold(tmp_path) as other:
        threading.Timer(0.3, other.stdin.close).start()  # type: ignore[union-attr]
        with artifacts.locked(tmp_path, wait=600):
            pass


def test_it_may_be_nested_but_not_across_threads(tmp_path: Path) -> None:
    refused = []

    def another() -> None:
        with pytest.raises(Busy):
            artifacts.locked(tmp_path, wait=0).__enter__()
        refused.append(True)

    with artifacts.locked(tmp_path):
        with artifacts.locked(tmp_path):
            pass
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
    assert refused == [True] and list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    (tmp_path / "checkpoints").mkdir()
    gone = [tmp_path / f".a.json.{dead.pid}.tmp", tmp_path / "checkpoints" / f".last.{dead.pid}.tmp"]
    kept = [
        tmp_path / f".a.json.{os.getppid()}.tmp",  # being written
        tmp_path / f".mine-{dead.pid}.tmp",
        tmp_path / ".tmp",
        tmp_path / f"a.{dead.pid}.tmp",
    ]
    for path in (*gone, *kept):
        path.write_text("half")
    with artifacts.locked(tmp_path):
        assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)
