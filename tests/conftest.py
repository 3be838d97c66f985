"""What every test shares: one thread a process, a cache folder of its own, and the real data where it is."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is imported anywhere: tests run in parallel processes, and threads would fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from hllm.config import Config
    from hllm.data.dataset import Dataset
    from hllm.models.hllm import Network
    from hllm.train.trainer import FitResult

ROOT = Path(__file__).resolve().parent.parent

# A model that trains in a second on the small world.
SMALL_TRAINING = {
    "d_model": 16, "n_layers": 1, "n_heads": 2, "max_distance": 8, "max_len": 8, "epochs": 4,
    "batch_tokens": 80, "learning_rate": 5e-3, "dropout": 0.2,
}  # fmt: skip

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


@pytest.fixture(scope="session", autouse=True)
def _files_are_not_synced() -> Iterator[None]:
    """Waiting for the disk is for power failures, which no test has; it took a tenth of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


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


@pytest.fixture(scope="session")
def data() -> Dataset:
    """A small world."""
    from hllm.testing import world

    return world(n_users=40, n_items=30)


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """The configuration of a small model; settings by name."""
    from hllm.config import load_config

    def make(**settings: Any) -> Config:
        return load_config("sasrec", overrides={**SMALL_TRAINING, **settings})

    return make


@pytest.fixture
def train(data: Dataset, make_config: Callable[..., Config]) -> Callable[..., tuple[Network, FitResult]]:
    """Train the small model on the small world; settings by name."""
    import torch

    from hllm.runs.train import train_network

    def run(
        folder: Path | None = None, resume: bool = False, embeddings: Any = None, **settings: Any
    ) -> tuple[Network, FitResult]:
        device = torch.device("cpu")
        return train_network(data, make_config(**settings), embeddings, device, folder, resume, show=False)

    return run


@pytest.fixture
def saved_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step instead of every 15 seconds."""
    from hllm.train import trainer

    monkeypatch.setattr(trainer.Trainer, "_due", lambda self: True)
