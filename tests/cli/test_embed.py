import re
import shlex

import polars as pl
import pytest

from hllm.cli import main
from hllm.data.dataset import Dataset


@pytest.fixture
def dataset(tmp_path):
    items = pl.DataFrame({"item_id": [1, 2, 3], "title": ["Up", "Heat", None], "genres": ["A", "B", None]})
    events = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [1, 2, 3], "timestamp": [1, 2, 3]})
    return Dataset.from_tables(events, items).save(tmp_path / "my data").path


def test_embed_says_what_it_did_and_what_is_next(dataset, capsys):
    arguments = ["embed", str(dataset), "--item-llm", "random", "--fields", "title", "--device", "cpu"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert re.search(r"2 encoded in .* \(.* items/s\), 0 reused, 1 without text\n", out)
    assert re.search(r"random; 256 dimensions, mean cosine between items -?0\.\d{3}; in .*embeddings", out)
    assert out.endswith(
        f"next: hllm train {shlex.quote(str(dataset))} --set item_llm=random --set 'text_fields=[title]'\n"
    )
    assert main(arguments) == 0
    assert "0 encoded, 2 reused" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--item-llm", "smollm2"], "unknown item LLM 'smollm2' (did you mean"),
        (["--pooling", "cls"], "unknown pooling 'cls'; valid: mean, last"),
        (["--fields", "name"], "unknown text field 'name'; valid: item_id, title, genres"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--precision", "int4"], "unknown precision 'int4'"),
        (["--item-llm", "./none"], "'./none' not found"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(dataset, capsys, options, message):
    assert main(["embed", str(dataset), "--device", "cpu", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (dataset / "embeddings").exists()


def test_a_folder_that_is_no_dataset(tmp_path, capsys):
    assert main(["embed", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_interrupted(dataset, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hllm.items.embed.complete_store", interrupt)
    assert main(["embed", str(dataset), "--item-llm", "random"]) == 130
    assert "same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [1, 2])
def test_training_reads_the_embeddings_once(tmp_path, monkeypatch, capsys, seeds):
    from hllm.items.store import shards
    from hllm.testing import world

    data = world().save(tmp_path / "data")
    assert main(["embed", str(data.path), "--item-llm", "random", "--device", "cpu"]) == 0
    read, original = [], shards.read_shard
    monkeypatch.setattr(shards, "read_shard", lambda *a: read.append(a) or original(*a))
    small = {"item_llm": "random", "d_model": 8, "n_heads": 2, "n_layers": 1, "epochs": 1, "whiten_rank": 4}
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    options = ["--preset", "demo", "--device", "cpu", "--seeds", str(seeds), "--out", str(tmp_path / "run")]
    assert main(["train", str(data.path), *settings, *options]) == 0, capsys.readouterr().err
    assert len(read) == 1
