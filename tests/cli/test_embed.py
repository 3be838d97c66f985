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
        (["--pooling", "max"], "unknown pooling 'max'; valid: mean, last, cls"),
        (["--pooling", "item-token"], "only a trained item LLM has"),
        (["--quantize", "3bit"], "unknown quantize '3bit' (did you mean '8bit'?); valid: none, 8bit, 4bit"),
        (["--long-text", "short"], "unknown long_text 'short'; valid: cut, heads, bm25"),
        (["--store", "fp8"], "unknown store 'fp8'; valid: fp32, fp16"),
        (["--field-tokens", "name=3"], "unknown text field that is read 'name'; valid: title, genres"),
        (["--fusion", "mean", "--field-tokens", "name=3"], "'name'; valid: title, genres"),
        (["--item-llm", "tfidf", "--quantize", "8bit"], "tfidf is no language model"),
        (["--dtype", "int4"], "unknown precision 'int4'"),
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

    monkeypatch.setattr("hllm.items.store.encode.Job.run", interrupt)
    assert main(["embed", str(dataset), "--item-llm", "random"]) == 130
    assert "same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [1, 2])
def test_training_reads_the_embeddings_once(tmp_path, monkeypatch, capsys, seeds):
    from hllm.items.store import mapped
    from hllm.testing import world

    data = world().save(tmp_path / "data")
    assert main(["embed", str(data.path), "--item-llm", "random", "--device", "cpu"]) == 0
    read, original = [], mapped._whole
    monkeypatch.setattr(mapped, "_whole", lambda path: read.append(path) or original(path))
    small = {"item_llm": "random", "d_model": 8, "n_heads": 2, "n_layers": 1, "epochs": 1, "whiten_rank": 4}
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    options = ["--preset", "demo", "--device", "cpu", "--seeds", str(seeds), "--out", str(tmp_path / "run")]
    assert main(["train", str(data.path), *settings, *options]) == 0, capsys.readouterr().err
    assert len(read) == 1


def test_list_prints_item_llms_or_what_a_dataset_has(dataset, capsys):
    assert main(["embed", "--list"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.split()[:1] == ["baichuan2-base"])
    assert "baichuan-inc/Baichuan2-7B-Base" in line
    assert line.split()[-4:] == ["28.0", "14.0", "7.0", "3.5"]
    assert main(["embed", str(dataset), "--list"]) == 0
    assert "no embeddings yet; next: hllm embed" in capsys.readouterr().out
    assert main(["embed", str(dataset), "--item-llm", "random", "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["embed", str(dataset), "--list"]) == 0
    assert re.fullmatch(
        r"[0-9a-f]{16}  256 dimensions, 0.0 MiB, random, fields title,genres\n", capsys.readouterr().out
    )
    assert main(["embed"]) == 2
    assert "name a dataset folder" in capsys.readouterr().err
