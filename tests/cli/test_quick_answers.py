"""What a typing mistake is answered by comes before torch, which takes seconds to import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MISTAKES: dict[str, tuple[list[str], str]] = {
    "preset": (["train", "{data}", "--preset", "hllm-light"], "unknown preset 'hllm-light'"),
    "setting": (["train", "{data}", "--set", "epoch=3"], "unknown setting 'epoch'"),
    "value": (["train", "{data}", "--set", "epochs=many"], "setting epochs='many'"),
    "no pair": (["train", "{data}", "--set", "epochs"], "is not key=value"),
    "file": (["train", "{data}", "--config", "none.yaml"], "none.yaml not found"),
    "dataset": (["train", "{none}"], "no dataset at"),
    "device": (["train", "{data}", "--device", "gpu"], "unknown device 'gpu'"),
    "embeddings": (["train", "{data}", "--preset", "demo"], "no embeddings of smollm2-135m"),
    "item llm": (["train", "{data}", "--set", "item_llm=smollm2"], "smollm2"),
    "out": (["train", "{data}", "--preset", "sasrec", "--out", "{file}"], "choose a folder for the run"),
    "option": (["train", "{data}", "--presett", "demo"], "No such option"),
    "evaluate a dataset": (["evaluate", "{data}"], "is a dataset, not a run"),
    "evaluate nothing": (["evaluate", "{none}"], "no run at"),
    "evaluate split": (["evaluate", "{run}", "--split", "tset"], "unknown split 'tset'"),
    "evaluate k": (["evaluate", "{run}", "-k", "0"], "k=0"),
    "evaluate device": (["evaluate", "{run}", "--device", "gpu"], "unknown device 'gpu'"),
    "recommend nothing": (["recommend", "{none}"], "no run at"),
    "recommend suffix": (["recommend", "{run}", "--out", "a.xlsx"], "unknown suffix '.xlsx'"),
    "recommend only": (["recommend", "{run}", "--only", "genres"], "is not COLUMN=VALUE"),
    "recommend users": (["recommend", "{run}", "--users", "none.txt"], "none.txt not found"),
    "embed nothing": (["embed", "{none}"], "no dataset at"),
    "embed model": (["embed", "{data}", "--item-llm", "smollm3-135m"], "smollm3-135m"),
    "embed pooling": (["embed", "{data}", "--pooling", "max"], "unknown pooling 'max'"),
    "embed precision": (["embed", "{data}", "--precision", "fp8"], "unknown precision 'fp8'"),
    "embed fields": (["embed", "{data}", "--fields", "titel"], "titel"),
    "embed device": (["embed", "{data}", "--device", "gpu"], "unknown device 'gpu'"),
    "command": (["trian"], "unknown command 'trian'"),
    "report": (["report", "{none}"], "is not a run folder"),
    "describe": (["data", "describe", "{none}"], "no dataset at"),
    "prepare": (["data", "prepare", "ml-100", "--out", "x"], "unknown"),
}  # fmt: skip

# In one process, so that a test takes a second: the first command that imports torch is named.
ASKING = """
import contextlib, io, json, sys
from hllm.cli import main
found = []
for words in json.loads(sys.argv[1]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    found.append([code, err.getvalue(), "torch" in sys.modules or "transformers" in sys.modules])
print(json.dumps(found))
"""


@pytest.fixture
def places(world_folder: Path, run_folder: Path, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "file").touch()
    return {
        "data": str(world_folder),
        "run": str(run_folder),
        "none": str(tmp_path / "none"),
        "file": str(tmp_path / "file"),
    }


def answers(names: list[str], places: dict[str, str], run_python: Callable[..., Any]) -> None:
    commands = [[word.format(**places) for word in MISTAKES[name][0]] for name in names]
    done = run_python("-c", ASKING, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    for name, (code, err, heavy) in zip(names, json.loads(done.stdout), strict=True):
        assert code == 2 and MISTAKES[name][1] in err and err.count("\n") == 1, (name, err)
        assert not heavy, f"{name}: torch was imported before the answer"


def test_typing_mistakes_are_answered_without_torch(places: dict[str, str], run_python: Any) -> None:
    answers(list(MISTAKES), places, run_python)


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_each_alone(places: dict[str, str], run_python: Any, name: str) -> None:
    answers([name], places, run_python)
