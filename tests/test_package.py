"""The package as a whole: its public names, its metadata and the examples in its docstrings."""

from __future__ import annotations

import doctest
import importlib
import tomllib
from pathlib import Path

import pytest

import hllm

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("name", [n for n in hllm.__all__ if n != "__version__"])
def test_public_names_resolve(name: str) -> None:
    assert getattr(hllm, name) is not None
    assert name in dir(hllm)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'hllm' has no attribute 'Recomender'"):
        _ = hllm.Recomender


def test_script_is_the_command_line() -> None:
    module, function = PROJECT["scripts"]["hllm"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_typed_and_licensed() -> None:
    assert (ROOT / "src/hllm/py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")[:200]
    assert PROJECT["license"] == "Apache-2.0"


def test_constraints_pin_every_core_dependency() -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    development = PROJECT["optional-dependencies"]["dev"]
    needed = {line.split(">")[0].lower() for line in [*PROJECT["dependencies"], *development]}
    assert needed <= pinned


def with_examples() -> list[str]:
    package = ROOT / "src"
    return [
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in sorted(package.rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("module", with_examples())
def test_docstring_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
