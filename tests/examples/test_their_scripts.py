"""Our preprocessing beside torch-rechub's own scripts on the same raw files: the same pickles.

Its scripts are in its repository and not in the package: point TORCH_RECHUB_SOURCE at a clone.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SOURCE = os.environ.get("TORCH_RECHUB_SOURCE")
COMMITS = {"rechub": "HEAD", "rechub-doc": "c712aff", "beauty": "9f82159"}

pytestmark = [
    pytest.mark.rechub,
    pytest.mark.skipif(
        SOURCE is None, reason="needs TORCH_RECHUB_SOURCE, a clone of datawhalechina/torch-rechub"
    ),
]


def run_theirs(folder: Path, name: str, commit: str, arguments: list[str], seed: int = 0) -> None:
    """Run a script of theirs as it is at `commit`, in a process of its own, numpy seeded."""
    pytest.importorskip("pandas")
    for part in (name, "download_utils.py") if commit == COMMITS["beauty"] else (name,):
        path = f"{commit}:examples/generative/data/{folder.name}/{part}"
        text = subprocess.run(
            ["git", "-C", str(SOURCE), "show", path], check=True, capture_output=True
        ).stdout
        (folder / f"theirs_{part}" if part == name else folder / part).write_bytes(text)
    code = (
        f"import numpy, runpy, sys; numpy.random.seed({seed}); sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, f"theirs_{name}", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def same(ours: Path, theirs: Path, name: str) -> None:
    mine, original = (pickle.loads((folder / name).read_bytes()) for folder in (ours, theirs))
    assert list(mine) == list(original) if name != "vocab.pkl" else mine.keys() == original.keys(), name
    for key, value in original.items():
        if isinstance(value, np.ndarray):
            assert mine[key].dtype == value.dtype and np.array_equal(mine[key], value), (name, key)
        else:
            assert mine[key] == value, (name, key)


FILES = ["vocab.pkl", "train_data.pkl", "val_data.pkl", "test_data.pkl"]


@pytest.mark.parametrize("state", ["rechub", "rechub-doc"])
def test_movielens(shell, raw_files, clone, state):
    here = clone / "examples/generative/data/ml-1m"
    raw_files["ml-1m"](here)
    shell.type(f"python {here}/preprocess_ml_hstu.py --state {state} --seed 5 --output_dir {here}/ours")
    arguments = ["--no_download"] if state == "rechub" else []
    run_theirs(here, "preprocess_ml_hstu.py", COMMITS[state], arguments, seed=5)
    for name in FILES:
        same(here / "ours", here / "processed", name)


@pytest.mark.parametrize(
    ("state", "layout"), [("rechub", "books"), ("rechub", "bytedance"), ("rechub-doc", "books")]
)
def test_books(shell, raw_files, clone, state, layout):
    here = clone / "examples/generative/data/amazon-books"
    raw_files[layout](here)
    shell.type(
        f"python {here}/preprocess_amazon_books.py --state {state} --output_dir {here}/ours --max_seq_len 9"
    )
    arguments = ["--data_dir", ".", "--output_dir", "processed", "--max_seq_len", "9"]
    if state == "rechub":
        arguments += ["--no_download", "--data_source", "raw" if layout == "books" else "bytedance"]
    run_theirs(here, "preprocess_amazon_books.py", COMMITS[state], arguments)
    for name in FILES:
        same(here / "ours", here / "processed", name)


def test_beauty(shell, raw_files, clone):
    here = clone / "examples/generative/data/amazon-beauty"
    raw_files["beauty"](here)
    shell.type(f"python {here}/preprocess_amazon_beauty.py --state rechub-doc --output_dir {here}/ours")
    run_theirs(here, "preprocess_amazon_beauty.py", COMMITS["beauty"], [])
    for name in FILES:
        same(here / "ours", here / "processed", name)


def test_texts_of_movies(shell, raw_files, clone):
    """Their text map of the same movies.dat; the language model behind it is left out."""
    here = clone / "examples/generative/data/ml-1m"
    raw_files["ml-1m"](here)
    shell.type(
        f"python {here}/preprocess_ml_hstu.py\n"
        f"python {here}/preprocess_hllm_data.py --model_type random --device cpu"
    )
    ours = pickle.loads((here / "processed/movie_text_map.pkl").read_bytes())
    path = "HEAD:examples/generative/data/ml-1m/preprocess_hllm_data.py"
    text = subprocess.run(["git", "-C", str(SOURCE), "show", path], check=True, capture_output=True).stdout
    (here / "theirs.py").write_bytes(text)
    pytest.importorskip("pandas")
    code = "import theirs; theirs.extract_movie_text('.', 'theirs')"
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True, capture_output=True)
    assert ours == pickle.loads((here / "theirs/movie_text_map.pkl").read_bytes())
