"""What every test shares: one thread a process, a cache folder of its own, and the real data where it is."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported anywhere: tests run in parallel processes, and threads would fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run: a failure in CI is a failure at the desk.
settings.register_profile("hllm", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("hllm")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Ids that never depend on a value's bytes: what is compressed, say, holds the second of the day.

    Parallel processes collect one by one, and pytest-xdist stops where their ids differ
    (tests/test_collection.py). pytest numbers equal ids.
    """
    if isinstance(val, bytes | bytearray) or (
        isinstance(val, str) and not (len(val) <= 60 and val.isprintable())
    ):
        return argname
    return None


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache; those of one process share a folder."""
    monkeypatch.setenv("HLLM_HOME", str(tmp_path_factory.getbasetemp() / "hllm-home"))


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python ARGUMENTS` in a fresh process that finds this checkout's hllm."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=600,
        )

    return run


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the checkout; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rules of Windows: no file is synced that is open for reading only, and no mapped file is
    replaced or removed."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux's list of mapped files")
    import fcntl

    fsync, replace, unlink = os.fsync, os.replace, os.unlink

    def mapped(path: object) -> bool:
        name = os.path.realpath(str(path))
        lines = Path("/proc/self/maps").read_text().splitlines()
        return any(line.split(maxsplit=5)[5:] == [name] for line in lines)

    def syncing(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fsync(descriptor)

    def replacing(source: object, target: object, **options: object) -> None:
        if mapped(target) or mapped(source):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        replace(source, target, **options)  # type: ignore[arg-type]

    def removing(path: object, **options: object) -> None:
        if mapped(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    monkeypatch.setattr(os, "unlink", removing)


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """`full_disk(n)`: no file of this process grows beyond n bytes, for whichever library; 0: room again."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]) if size else before)

    yield limit
    limit(0)
    signal.signal(signal.SIGXFSZ, handler)
