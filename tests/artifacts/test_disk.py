"""Failing disks and paths: every library's own error, one answer, and the same call works afterwards."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from hllm import artifacts
from hllm.errors import ArtifactError, ConfigError
from hllm.formats.rechub import write_embeddings

WRITERS: dict[str, Callable[[Path, np.ndarray], object]] = {
    "json": lambda p, noise: artifacts.write_json(p, noise.tolist()),
    "npy": lambda p, noise: artifacts.write_array(p, noise),
    "safetensors": lambda p, noise: artifacts.write_tensors(p, {"x": torch.from_numpy(noise)}),
    "parquet": lambda p, noise: artifacts.write_table(p, pl.DataFrame({"x": noise})),
    "torch": lambda p, noise: write_embeddings(p.parent, "x", noise.reshape(-1, 2)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("n", [100, 200_000])
def test_case_e19_a_full_disk(
    tmp_path: Path, full_disk: Callable[[int], None], name: str, share: float, n: int
) -> None:
    """Wherever the room ends, also where a library writes its last bytes without looking."""
    noise = np.random.default_rng(0).normal(size=n)
    WRITERS[name](tmp_path / "file", noise)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.unlink()
    full_disk(int(share * len(whole)))
    with pytest.raises(
        ArtifactError, match=r"cannot write .*make room, then run the same command again"
    ) as caught:
        WRITERS[name](tmp_path / "file", noise)
    assert "\n" not in str(caught.value)
    full_disk(0)
    assert list(tmp_path.iterdir()) == []
    WRITERS[name](tmp_path / "file", noise)
    assert file.read_bytes() == whole


def test_case_e19_impossible_paths(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    paths = {
        tmp_path / "loop" / "x": "File exists; choose another folder|link",
        tmp_path / "file" / "x": "File exists; choose another|Not a directory",
        tmp_path / ("x" * 300): "File name too long; choose a shorter name",
        tmp_path / ("x" * 300) / "x": "File name too long",
        tmp_path: "Is a directory; choose another folder",
        Path("/proc/none/x"): "cannot create /proc/none",
    }
    for path, message in paths.items():
        with pytest.raises(ArtifactError, match=message) as caught:
            artifacts.write_text(path, "x")
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]


def test_case_e19_a_cache_folder_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLLM_HOME", "~nouser/cache")
    with pytest.raises(ConfigError, match=r"HLLM_HOME='~nouser/cache'.*Set HLLM_HOME to a folder"):
        artifacts.home()


def test_errors_of_disks_and_others() -> None:
    room = "No space left on device; make room, then run the same command again"
    assert artifacts.disk_problem(OSError(errno.ENOSPC, "")) == room
    assert artifacts.disk_problem(OSError("4096 requested and 512 written")) == room
    assert artifacts.disk_problem(pl.exceptions.ComputeError("x (os error 28)")) == room
    assert artifacts.disk_problem(RuntimeError("PytorchStreamWriter failed writing file data/0")) == room
    text = artifacts.disk_problem(OSError(errno.ENOENT, "", "n" * 500))
    assert text is not None and len(text) < 130
    others = (
        RuntimeError("of ours"),
        ConnectionResetError(errno.EACCES, ""),
        BrokenPipeError(errno.EPIPE, ""),
    )
    assert [artifacts.disk_problem(err) for err in (*others, OSError("unspoken"), KeyError("x"))] == [
        None
    ] * 5


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of ours"), artifacts.disk_errors("write x"):
        raise RuntimeError("of ours")


def test_a_deleted_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    try:
        message = "the working folder was deleted; change to one that exists"
        with pytest.raises(ArtifactError, match=message), artifacts.disk_errors("write x"):
            os.getcwd()
    finally:
        tmp_path.mkdir()


def test_case_e24_a_place_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "new" / "deep" / "a.csv", tmp_path / "file", tmp_path, Path("here.csv")):
        artifacts.check_writable(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    for path in (tmp_path / "file" / "a.csv", tmp_path / ("x" * 300)):
        with pytest.raises(ArtifactError, match="cannot write"):
            artifacts.check_writable(path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a read-only disk; the tests may run as root
    with pytest.raises(ArtifactError, match=r"Permission denied.*; choose another folder"):
        artifacts.check_writable(tmp_path / "a.csv")
