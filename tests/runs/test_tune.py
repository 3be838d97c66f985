"""A search keeps what it found, goes on after a kill, and looks at validation alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from hllm.artifacts import read_jsonl
from hllm.config import Config, load_config
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, ConfigError, TrainingError
from hllm.runs import train as training
from hllm.runs import tune as module
from hllm.runs.tune import TRIALS, Search, best_of, tune
from hllm.testing import world

pytest.importorskip("optuna")
SMALL = {"d_model": 8, "n_heads": 1, "n_layers": 1, "epochs": 3, "max_len": 10}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(n_users=30, n_items=20)


def search(data: Dataset, **more: Any) -> Search:
    given = SMALL | more

    def make(settings: Mapping[str, Any]) -> Config:
        return load_config("sasrec", overrides=given | dict(settings))

    return Search(data, make, None, torch.device("cpu"), frozenset(given))


def invented(rate: float) -> float:
    """A validation that likes a learning rate of .001."""
    return 0.5 - abs(rate - 1e-3) * 100


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trials of ten seconds that train nothing; the settings that they were given."""
    seen: list[dict[str, Any]] = []

    def train(search: Search, settings: Mapping[str, Any], trial: Any, number: int, deadline: float) -> Any:
        seen.append(dict(settings))
        value = invented(settings["learning_rate"])
        trial.report(value, 0)
        return {"trial": number, "settings": dict(settings), "state": "complete", "value": value, "epoch": 1,
                "epochs": 1, "seconds": 10.0, "values": [value]}  # fmt: skip

    monkeypatch.setattr(module, "_train", train)
    return seen


def test_the_first_trial_is_the_settings_as_they_are_and_later_ones_are_better(
    data: Dataset, quick: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = tune(search(data), tmp_path, 400, lambda line: None)
    assert len(rows) == 40 and rows == read_jsonl(tmp_path / TRIALS)
    own = load_config("sasrec", overrides=SMALL)
    assert (
        quick[0]["learning_rate"] == own.training.learning_rate and quick[0]["dropout"] == own.users.dropout
    )
    assert not {"d_model", "n_layers", "max_len"} & set(quick[0])  # given, so not searched
    best = best_of(rows)
    assert best is not None and best["value"] > rows[0]["value"]
    assert abs(best["settings"]["learning_rate"] - 1e-3) < 2e-4
    later = [invented(s["learning_rate"]) for s in quick[20:]]
    assert sum(later) / 20 > sum(invented(s["learning_rate"]) for s in quick[1:8]) / 7  # it learns


def test_a_search_goes_on_where_it_was_killed(
    data: Dataset, quick: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(search(data), tmp_path / "whole", 120, lambda line: None)
    train, done = module._train, []

    def killed(*args: Any) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return train(*args)

    monkeypatch.setattr(module, "_train", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(search(data), tmp_path / "cut", 120, lambda line: None)
    assert len(read_jsonl(tmp_path / "cut" / TRIALS)) == 5
    monkeypatch.setattr(module, "_train", train)
    rows = tune(search(data), tmp_path / "cut", 120, lambda line: None)
    assert len(rows) == 12 and rows == whole  # the trial that was lost comes again
    before = len(quick)
    assert tune(search(data), tmp_path / "cut", 120, lambda line: None) == rows and len(quick) == before
    assert len(tune(search(data), tmp_path / "cut", 150, lambda line: None)) == 15  # more time, more trials
    with pytest.raises(ArtifactError, match="holds another search"):
        tune(search(data, weight_decay=0.3), tmp_path / "cut", 120, lambda line: None)


def test_folders_that_hold_no_search_are_told(
    data: Dataset, quick: list[dict[str, Any]], tmp_path: Path
) -> None:
    def fails(folder: Path) -> str:
        with pytest.raises(ArtifactError) as caught:
            tune(search(data), folder, 10, lambda line: None)
        return str(caught.value)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert "run holds something else (config.json, ...); choose another --out" in fails(tmp_path / "run")
    tune(search(data), tmp_path / "search", 10, lambda line: None)
    for text, told in (('{"trial": 0', "cannot read"), ("{}", "rows that are no trials"), ("3", "no trials")):
        (tmp_path / "search" / TRIALS).write_text(text + "\n")
        message = fails(tmp_path / "search")
        assert told in message and "to search anew, or choose another --out" in message
    (tmp_path / "search" / module.SEARCH).write_text("{")
    assert "cannot read" in fails(tmp_path / "search")


def test_trials_train_and_never_look_at_test(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits: list[str] = []
    evaluate = training.evaluate

    def watched(model: Any, data: Dataset, split: str, *args: Any, **more: Any) -> Any:
        splits.append(split)
        return evaluate(model, data, split, *args, **more)

    monkeypatch.setattr(training, "evaluate", watched)
    said: list[str] = []
    rows = tune(search(data), tmp_path, 0.5, said.append)
    assert set(splits) == {"validation"} and rows[0]["state"] in ("complete", "cut by the budget")
    assert rows[0]["value"] == max(rows[0]["values"]) and 1 <= rows[0]["epoch"] <= rows[0]["epochs"] <= 3
    assert any("best" in line for line in said)
    # What is printed is what is trained: the settings give the value again.
    if rows[0]["state"] == "complete":
        config = search(data).make(rows[0]["settings"])
        result = training.train_network(data, config, None, torch.device("cpu"), show=False)[1]
        assert result.best_value == pytest.approx(rows[0]["value"], abs=1e-6)


def test_where_nothing_trains_the_error_is_told(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise TrainingError("vectors have collapsed")

    monkeypatch.setattr(module, "make_trainer", broken)
    with pytest.raises(TrainingError, match="collapsed"):
        tune(search(data), tmp_path, 60, lambda line: None)
    assert [row["state"] for row in read_jsonl(tmp_path / TRIALS)] == ["failed"] * module.FAILURES


def test_without_optuna(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'hllm\[tune\]'"):
        tune(search(data), tmp_path, 1, lambda line: None)


def test_with_every_setting_given_there_is_no_search(
    data: Dataset, quick: list[dict[str, Any]], tmp_path: Path
) -> None:
    own = search(data)
    all_given = Search(data, own.make, None, own.device, own.fixed | set(own.space()))
    with pytest.raises(ConfigError, match="every setting that hllm tune searches is given"):
        tune(all_given, tmp_path / "x", 60, lambda line: None)
    assert not quick and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("preset", "without"),
    [
        ("sasrec-paper", {"mask_prob"}),
        ("rechub", {"d_model", "mask_prob"}),
        ("llama-id", {"dropout", "mask_prob"}),
    ],
)
def test_only_what_has_an_effect_is_searched(data: Dataset, preset: str, without: set[str]) -> None:
    found = Search(data, lambda s: load_config(preset, overrides=dict(s)), None, torch.device("cpu")).space()
    assert "learning_rate" in found and not without & set(found)
    for kind, *values in found.values():
        assert kind in ("log", "linear", "one of") and len(values) > 1 and values == sorted(values)
