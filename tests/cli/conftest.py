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
BREAKING = """
import os, signal, sys
from hllm.train import trainer
trainer.Trainer._due = lambda self: True
step = trainer.Trainer._step
def breaking(self, *arguments):
    if self.state.step == {step}:
        os.kill(os.getpid(), signal.{signal})
    return step(self, *arguments)
trainer.Trainer._step = breaking
from hllm.cli import main
sys.exit(main(sys.argv[1:]))
"""


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


@pytest.fixture(scope="session")
def breaking() -> Callable[..., str]:
    """Code of a process that sends itself `signal` just before optimiser step `step`; with `saves`, a checkpoint is
    written after every step."""

    def code(step: int, signal: str, saves: bool = True) -> str:
        text = BREAKING if saves else BREAKING.replace("trainer.Trainer._due = lambda self: True\n", "")
        return text.format(step=step, signal=signal)

    return code


@pytest.fixture
def command(world_folder: Path) -> Callable[..., list[str]]:
    """A training of the world into `out`; what `more` sets, it sets instead of SMALL."""

    def make(out: Path, *more: str, preset: str = "sasrec") -> list[str]:
        given = {word.removeprefix("--set=").partition("=")[0] for word in more}
        small = [word for pair in SMALL if pair.partition("=")[0] not in given for word in ("--set", pair)]
        return [
            "train",
            str(world_folder),
            "--preset",
            preset,
            "--out",
            str(out),
            "--device",
            "cpu",
            *small,
            *more,
        ]

    return make
