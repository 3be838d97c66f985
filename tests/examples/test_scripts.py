"""Each script runs by its own, in a Python that knows the installed package alone."""

from __future__ import annotations

import pytest

SCRIPTS = [
    "run_hllm_movielens.py",
    "run_hstu_amazon_books.py",
    "data/ml-1m/preprocess_ml_hstu.py",
    "data/amazon-beauty/preprocess_amazon_beauty_hllm.py",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_finds_what_it_needs_from_any_folder(run_python, clone, script):
    done = run_python(str(clone / "examples/generative" / script), "--help")
    assert done.returncode == 0, done.stderr
    assert "--state" in done.stdout


def test_every_script_starts_in_one_of_the_two_ways(clone):
    """Those in `data/` name the folder with the shared code; for the others it lies beside."""
    for path in sorted((clone / "examples/generative").rglob("*.py")):
        if path.parent.name != "rechub_scripts":
            text = path.read_text(encoding="utf-8")
            assert text.count("from rechub_scripts.") == 2, path
            assert text.count("sys.path") == (path.parent.parent.name == "data"), path
