"""A dataset folder, a trained run, and commands as a user types them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hllm.cli import main
from hllm.testing import world

SMALL = [
    "d_model=16", "n_layers=1", "n_heads=2", "epochs=3", "batch_tokens=150", "learning_rate=1e-2", "max_len=12",
]  # fmt: skip


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Settings that train the world in a second."""
    return [part for setting in SMALL for part in ("--set", setting)]


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder with embeddings of the control `random`."""
    from hllm.items.embed import embed

    data = world(string_ids=True).save(tmp_path_factory.mktemp("cli") / "world")
    embed(data, "random", progress=False)
    assert data.path is not None
    return data.path


@pytest.fixture(scope="session")
def run_folder(world_folder: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    run = tmp_path_factory.mktemp("cli-run") / "run"
    arguments = [
        "train",
        str(world_folder),
        "--preset",
        "sasrec",
        "--out",
        str(run),
        "--device",
        "cpu",
        *small,
    ]
    assert main(arguments) == 0
    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with code 2 and one line on standard error; returns that line."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        return err[len("error: ") : -1]

    return run
