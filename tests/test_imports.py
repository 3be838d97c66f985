"""Imports point one way, and the public entrances load nothing heavy."""

from __future__ import annotations

import ast
import graphlib
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

# A module may import what stands in its own row or a row above it. This is the order of the design.
LAYERS = [
    ["errors", "presets"],
    ["settings"],
    ["arguments"],
    ["items.config", "models.config", "losses.config", "train.config"],  # the sections of the configuration
    [
        "config",
        "packing",
        "artifacts",
        "fetch",
        "unpack",
        "progress",
        "hardware",
        "engine",
        "kernels",
        "ranks",
    ],
    ["formats"],
    ["data", "text"],
    ["items"],
    ["models", "losses"],
    ["baselines", "evaluate"],
    ["train"],
    ["runs"],
    ["recommend"],
    ["pipeline"],
    ["batch"],
    ["report", "export", "serve", "bench", "testing"],
    ["compat"],
    ["cli"],
]
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
ENTRANCES = {"__init__", "__main__"}  # of the package itself: they reach everything, lazily
HEAVY = ("torch", "transformers", "polars", "pandas", "pydantic", "numpy")


def modules() -> dict[str, Path]:
    """`data.dataset` -> its file, for every file of the package."""
    package = SOURCE / "hllm"
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): path
        for path in sorted(package.rglob("*.py"))
    }


def imported(tree: ast.AST) -> Iterator[str]:
    """Absolute names that `tree` imports; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place_of(name: str) -> str:
    """The entry of LAYERS for a module, or for a name imported from one: a section, else the room."""
    section = ".".join(name.split(".")[:2])
    return section if section in LEVEL else name.split(".")[0]


def upward_imports(module: str, text: str) -> list[str]:
    """What the source `text` of `module` imports against the order."""
    own = place_of(module)
    wrong = []
    for name in imported(ast.parse(text)):
        parts = name.split(".")
        if parts[0] != "hllm" or parts[1] == "__version__":
            continue
        target = place_of(".".join(parts[1:]))
        if LEVEL.get(target, 99) > LEVEL[own] or (own in ("models", "losses") and target == "data"):
            wrong.append(name)
    return wrong


def test_every_module_has_its_place() -> None:
    assert {name.split(".")[0] for name in modules()} - ENTRANCES <= set(LEVEL)


def test_no_upward_import() -> None:
    wrong = {
        name: found
        for name, path in modules().items()
        if name not in ENTRANCES and (found := upward_imports(name, path.read_text(encoding="utf-8")))
    }
    assert wrong == {}


def circle(texts: dict[str, str]) -> list[str]:
    """Modules that import each other around, given all `texts` by name; what only a type checker reads apart."""
    graph = {}
    for name, text in texts.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = []
        found = (full.removeprefix("hllm.") for full in imported(tree) if full.startswith("hllm."))
        graph[name] = {full if full in texts else full.rpartition(".")[0] for full in found} & set(texts)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as err:
        return list(err.args[1])
    return []


def test_no_modules_import_each_other_around() -> None:
    """Imports inside functions count: they may be late because something is heavy, not to break a circle."""
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    assert circle({name: text for name, text in texts.items() if name not in ENTRANCES}) == []
    late = "def f():\n    from hllm.items.encoders.hub import find_model"
    assert "items.encoders.names" in circle({**texts, "items.encoders.names": late})


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("data.dataset", "from hllm.items.store.shards import Store"),
        ("models.hllm", "from hllm.data.batches.training import TrainLoader"),
        ("errors", "def f():\n    import hllm.config"),
        ("config", "from hllm import cli"),
        ("models.config", "from hllm.config import Config"),
        ("items.config", "from hllm.items.encoders.names import canonical"),
    ],
)
def test_an_upward_import_is_found(module: str, line: str) -> None:
    assert upward_imports(module, line)


def test_every_import_is_declared() -> None:
    """What the package imports stands in pyproject.toml, in the core or in an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines
    ]
    declared = {_distribution(line) for line in [*project["dependencies"], *extras]}
    # Tables of two kinds are accepted, never required; triton comes with torch where there is a GPU for it.
    optional_inputs = {"pandas", "pyarrow", "triton"}
    providers = packages_distributions()
    undeclared = {}
    for name, path in modules().items():
        for full in imported(ast.parse(path.read_text(encoding="utf-8"))):
            top = full.split(".")[0]
            candidates = {_distribution(d) for d in providers.get(top, [top])}
            known = top == "hllm" or top in sys.stdlib_module_names or top in optional_inputs
            if not known and not candidates & declared:
                undeclared[name] = top
    assert undeclared == {}


def _distribution(requirement: str) -> str:
    name = requirement
    for mark in "[<>=!~; ":
        name = name.split(mark)[0]
    return name.lower().replace("_", "-").replace(".", "-")


def loaded_by(run_python, statement: str, names: tuple[str, ...] = HEAVY) -> list[str]:
    code = f"import sys\n{statement}\nprint([n for n in {names!r} if n in sys.modules], file=sys.stderr)"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stderr.strip().splitlines()[-1])


def test_import_hllm_loads_nothing_heavy(run_python) -> None:
    assert loaded_by(run_python, "import hllm") == []


def test_help_loads_nothing_heavy(run_python) -> None:
    help_text = "from hllm.cli import main\nassert main(['--help']) == 0"
    assert loaded_by(run_python, help_text) == []


def test_training_needs_no_table_library(run_python) -> None:
    """Datasets, embeddings and runs are read with numpy and safetensors alone."""
    wanted = [
        "data.dataset",
        "data.batches.training",
        "items.embed",
        "items.source.frozen",
        "train.trainer",
        "evaluate.ranking",
    ]
    there = [name for name in wanted if name in modules()]
    statement = "; ".join(f"import hllm.{name}" for name in there)
    assert loaded_by(run_python, statement, ("polars", "pandas", "pyarrow", "transformers")) == []
