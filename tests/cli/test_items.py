"""`hllm items DATASET --check`."""

import re
import shutil
from pathlib import Path

import pytest

from hllm.cli import main
from hllm.data.dataset import Dataset
from hllm.items.embed import embed


@pytest.fixture
def world(world_folder: Path, tmp_path: Path) -> Path:
    """A copy with embeddings of its own."""
    return Path(shutil.copytree(world_folder, tmp_path / "world"))


def test_check_prints_health_neighbours_and_advice(world: Path, capsys) -> None:
    assert main(["items", str(world), "--check", "--samples", "3", "-k", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^random, pooling none, store [0-9a-f]{16}$", out, re.M)
    assert re.search(
        r"^\d+ items, \d+ without text, 0 cut, \d+ with a vector that others have too", out, re.M
    )
    assert re.search(
        r"^mean cosine -?0\.\d{3}, after centring 0\.\d{3}; effective rank \d+ of \d+$", out, re.M
    )
    assert re.search(r"^advice: ", out, re.M)
    assert "nearest" in out


def test_which_embeddings_is_asked_where_there_are_several_or_none(world: Path, capsys) -> None:
    embed(Dataset.load(world), "tfidf", progress=False)
    assert main(["items", str(world)]) == 2
    assert "2 sets of embeddings" in capsys.readouterr().err
    assert main(["items", str(world), "--item-llm", "tfidf", "--samples", "0"]) == 0
    assert capsys.readouterr().out.startswith("tfidf, pooling none")
    assert main(["items", str(world), "--item-llm", "tfidf", "--pooling", "most"]) == 2
    assert "unknown pooling 'most'" in capsys.readouterr().err
    for field in range(6):
        embed(Dataset.load(world), "random", template=f"{field} {{title}}", progress=False)
    assert main(["items", str(world)]) == 2
    assert "8 sets of embeddings" in (err := capsys.readouterr().err) and "; and 3 more, which" in err
    assert main(["items", str(world), "--item-llm", "minilm"]) == 2
    assert "run: hllm embed" in capsys.readouterr().err
