"""The commands that README's figures come from still run: every benchmark loads, and steps are taken."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hllm.config import load_config
from hllm.data.dataset import Dataset
from hllm.items.embed import embed
from hllm.testing import world

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


def test_every_benchmark_loads(run_python: Callable[..., Any]) -> None:
    """What they measure may move; the names that they import may not be left behind."""
    code = "import sys\nsys.path.insert(0, sys.argv[1])\nfor name in sys.argv[2:]: __import__(name)"
    done = run_python("-c", code, str(BENCHMARKS), *SCRIPTS)
    assert len(SCRIPTS) > 20 and done.returncode == 0, done.stderr


NOWHERE = (
    "captured_step none --device cpu", "cold_items none", "field none --out FILE",
    "live_vs_frozen prepare none --pack OUT",
    "live_vs_frozen run none --out FILE", "live_vs_frozen show none", "load --run none", "losses none",
    "rechub_presets none", "recipe pack none --out OUT", "recipe run none --out FILE", "refresh none",
    "soak --run none", "step_time none", "text_table none --out FILE", "demo_training --out FILE a=none:none",
    "books_reading --rechub none",
)  # fmt: skip


def test_a_missing_folder_is_told_in_one_line(run_python: Callable[..., Any], tmp_path: Path) -> None:
    code = """
import importlib, os, sys
sys.path.insert(0, sys.argv[1])
os.chdir(sys.argv[2])
from told import told
for command in sys.argv[3:]:
    sys.argv = command.split()
    try:
        told(importlib.import_module(sys.argv[0]).main)
        print(command, "ends well")
    except SystemExit as end:
        print(end.code)
"""
    done = run_python("-c", code, str(BENCHMARKS), str(tmp_path), *NOWHERE)
    assert done.stdout.split() == ["2"] * len(NOWHERE), (done.stdout, done.stderr)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ") or ": error: " in line]
    assert len(said) == len(NOWHERE) and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_benchmarks_take_the_steps_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import losses
    import rechub_equal_time
    import rechub_speed

    data = world(n_users=30)
    small = {"max_len": 8, "n_heads": 1, "n_layers": 1, "batch_tokens": 40, "item_llm": "tfidf", "dropout": 0}
    embeddings = embed(data, "tfidf", progress=False)
    config = load_config("rechub", overrides=small)
    timed = rechub_speed.our_batches(data, embeddings, config, "cpu")
    assert [tokens > 0 and seconds > 0 for seconds, tokens in (next(timed), next(timed))] == [True, True]
    assert losses.step_milliseconds(data, config, embeddings, "cpu", steps=4) > 0
    train, ranker = rechub_equal_time.packed(data, config, "tfidf", "cpu")
    before = ranker().get_parameter("model.user_model.position_embedding.weight").clone()
    assert train() > 0
    after = ranker().get_parameter("model.user_model.position_embedding.weight")
    assert not torch.equal(before, after)
    for name in ("losses", "rechub_equal_time", "rechub_speed", "rechub_presets", "step_time"):
        sys.modules.pop(name, None)


def test_text_options_are_chosen_by_the_screening_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first seed's validation decides, not test, other seeds or another data set."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import text_options as options

    row = options.Row(options.SCREENED, "minilm", *options.DEFAULT, "text", 0)
    values = {
        row: (0.5, 0.5),
        row._replace(text="natural"): (0.4, 0.1),
        row._replace(text="cleaned"): (0.2, 0.9),
        row._replace(text="64 tokens"): (0.3, 0.2),
        row._replace(text="cleaned", seed=1): (0.9, 0.9),
        row._replace(text="cleaned", data="online-retail"): (0.9, 0.9),
        row._replace(pooling="cls"): (0.3, 0.1),
        row._replace(pooling="last", whitening="64"): (0.4, 0.1),
        row._replace(pooling="cls@4", inputs="text+id"): (0.9, 0.9),
    }
    for made, (validation, test) in values.items():
        found = {"validation": {"ndcg@10": validation}, "test": {"ndcg@10": test}}
        options.append(tmp_path / "rows.jsonl", made._asdict() | found)
    rows = options.read(tmp_path / "rows.jsonl")
    assert [option[0] for option in options.best(rows, "minilm", "texts")] == ["natural", "64 tokens"]
    assert [option[1] for option in options.best(rows, "minilm", "poolings")] == ["last", "cls"]
    assert [option[1] for option in options.best(rows, "minilm", "poolings", ("256",))] == ["cls"]
    sys.modules.pop("text_options", None)


def test_text_options_go_on_after_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a record holds is not trained again, but for the defaults that new rows are compared with."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import text_options as options

    record = BENCHMARKS / "results" / "text_options_h100.json"
    given = {"after": record, "out": tmp_path / "rows.jsonl", "parts": ["texts", "poolings"]}

    def planned(*data: str) -> list[list[Any]]:
        return list(options.stages(argparse.Namespace(**given, data=data)))

    screened, whitening, final = planned(options.SCREENED)
    assert screened and {row.option for row in screened} == {options.DEFAULT}
    assert {row.pooling for row in whitening} == {"last", "mean@25", "mean@last4"}
    assert {row.seed for row in final} == {0, 1, 2}
    assert options.DEFAULT in {row.option for row in final}
    assert not any(row.text == "64 tokens" for row in final)  # trained for the record
    (others,) = planned("online-retail")
    assert {row.text for row in others} == {"", "official", "64 tokens", "fields averaged"}
    assert len(others) == 2 + 3 * len(options.INPUTS) * len(options.SEEDS)
    sys.modules.pop("text_options", None)


def test_text_options_note_a_training_that_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its row says why, and the rows after it are trained."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import text_options as options

    world(n_users=30).save(tmp_path / "online-retail")
    data = Dataset.load(tmp_path / "online-retail")
    found = embed(data, "tfidf", progress=False)
    alike = replace(found, vectors=np.ones_like(found.vectors))
    monkeypatch.setattr(options, "vectors", lambda data, row, device: found if row.seed else alike)
    row = options.Row("online-retail", "tfidf", "official", "mean", "8", "text", 0)
    small = {"epochs": 1, "n_layers": 1, "n_heads": 1, "max_len": 8, "pooling": "none"}
    args = argparse.Namespace(
        out=tmp_path / "rows.jsonl", source=tmp_path, until=float("inf"), device="cpu", set=small
    )
    assert options.train_group(args, [row, row._replace(seed=1)]) == 2
    stopped, trained = options.read(args.out)
    assert "collapsed" in stopped["failed"] and stopped["test"]["ndcg@10"] == 0
    assert trained["failed"] is None and trained["test"]["ndcg@10"] > 0
    sys.modules.pop("text_options", None)
