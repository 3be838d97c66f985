from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from hllm import artifacts
from hllm.errors import ArtifactError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"v": 1})
    with pytest.raises(RuntimeError, match="half way"), artifacts.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert artifacts.read_json(path) == {"v": 1}
    assert names(tmp_path) == ["a.json"]


def test_nan_is_refused_before_the_old_file_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    artifacts.write_json(path, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(path, [float("nan")])
    assert artifacts.read_json(path) == [1]


def test_a_killed_write_keeps_the_old_file(
    tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    path = tmp_path / "a.txt"
    artifacts.write_text(path, "old")
    code = (
        "import os, signal, sys\nfrom hllm.artifacts import atomic\n"
        "with atomic(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run_python("-c", code, str(path)).returncode == -9
    assert artifacts.read_text(path) == "old"
    artifacts.write_text(path, "new")  # the leftover is in nobody's way
    assert artifacts.read_text(path) == "new"


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_new_files_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    """safetensors writes for its owner alone; others of the group want to read the weights too."""
    before = os.umask(umask)
    try:
        artifacts.write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
        artifacts.write_json(tmp_path / "a.json", 1)
        with artifacts.atomic(tmp_path / "private") as temporary:
            temporary.touch(mode=0o400)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {oct(0o666 & ~umask)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match="cannot"):
        artifacts.write_text(tmp_path / "a", "x")


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"cannot create .*file"):
        artifacts.write_text(tmp_path / "file" / "a", "x")


def test_json_and_lines_round_trip(tmp_path: Path) -> None:
    rows = [{"title": "Misérables\u2028, Les", "n": 1}, {"title": "Up", "n": None}]
    artifacts.write_json(tmp_path / "deep" / "a.json", rows)
    artifacts.write_jsonl(tmp_path / "a.jsonl", rows)
    assert artifacts.read_json(tmp_path / "deep" / "a.json") == rows
    assert artifacts.read_jsonl(tmp_path / "a.jsonl") == rows
    assert artifacts.read_jsonl(tmp_path / "absent.jsonl") == []


def test_arrays_round_trip(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2]
    artifacts.write_array(tmp_path / "a.npy", array)
    read = artifacts.read_array(tmp_path / "a.npy")
    assert isinstance(read, np.memmap)
    assert not read.flags.writeable
    np.testing.assert_array_equal(read, array)
    assert not isinstance(artifacts.read_array(tmp_path / "a.npy", mmap=False), np.memmap)


def test_tensors_round_trip(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4, requires_grad=True).T, "b": torch.arange(3, dtype=torch.bfloat16)}
    artifacts.write_tensors(tmp_path / "a.safetensors", tensors, {"epoch": 3})
    read, metadata = artifacts.read_tensors(tmp_path / "a.safetensors")
    assert metadata == {"epoch": 3}
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in tensors.items())


def test_tables_round_trip(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": ["007", "7"], "timestamp": [978300060, 978300055]})
    artifacts.write_table(tmp_path / "a.parquet", frame)
    assert artifacts.read_table(tmp_path / "a.parquet").equals(frame)
    assert artifacts.read_table(tmp_path / "a.parquet", ["timestamp"]).columns == ["timestamp"]


def test_copies(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    artifacts.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"abc"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert artifacts.digest_file(tmp_path / "b") == abc


READERS = {
    "a.json": artifacts.read_json,
    "a.txt": artifacts.read_text,
    "a.npy": artifacts.read_array,
    "a.safetensors": artifacts.read_tensors,
    "a.parquet": artifacts.read_table,
    "a.jsonl": artifacts.read_jsonl,
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe{not what it should be")
    with pytest.raises(ArtifactError, match=f"cannot read .*{name}: ") as caught:
        READERS[name](tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in READERS if n != "a.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=f"{name} not found"):
        READERS[name](tmp_path / name)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="allow_pickle"):
        artifacts.read_array(tmp_path / "a.npy", mmap=False)


def test_digest_tells_lists_apart() -> None:
    assert artifacts.digest("ab", "c") != artifacts.digest("a", "bc")
    assert artifacts.digest("é") == artifacts.digest("é".encode())
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert artifacts.digest(array.T) == artifacts.digest(np.ascontiguousarray(array.T))
    assert artifacts.digest(array) == artifacts.digest(array.tobytes())
    assert artifacts.digest(np.zeros(0, np.int32)) == artifacts.digest(b"")


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HLLM_HOME", str(tmp_path))
    assert artifacts.home() == tmp_path
    monkeypatch.delenv("HLLM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert artifacts.home() == tmp_path / "cache" / "hllm"
    assert artifacts.home().name == "hllm"
