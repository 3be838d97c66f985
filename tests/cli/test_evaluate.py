"""`hllm evaluate`: the run's numbers as a table or as JSON alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from hllm.artifacts import read_json
from hllm.cli import main
from hllm.data.dataset import Dataset

Capture = pytest.CaptureFixture[str]
Fails = Callable[..., str]


def test_json_is_all_there_is_on_standard_output(run_folder: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(run_folder), "--json", "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert list(document) == ["test", "baselines"]
    assert {f"{kind}@{k}" for kind in ("hr", "recall", "ndcg", "mrr") for k in (10, 50, 200)} <= set(
        document["test"]
    )
    assert set(document["baselines"]) == {"test"}
    assert set(document["baselines"]["test"]) == {"popularity", "markov", "random"}
    saved = read_json(run_folder / "metrics.json")
    assert document["test"] == saved["test"]  # the same layout and the same values
    assert document["baselines"]["test"] == saved["baselines"]["test"]


def test_other_cut_offs_splits_and_seen_items(run_folder: Path, capsys: Capture) -> None:
    options = ["--split", "validation", "--k", "5", "-k", "1", "--keep-seen", "--candidates", "catalogue"]
    assert main(["evaluate", str(run_folder), "--json", *options, "--device", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["validation", "baselines"]
    found = document["validation"]
    assert {"hr@1", "hr@5"} <= set(found) and "hr@10" not in found
    assert (found["protocol"]["seen"], found["protocol"]["candidates"]) == ("kept", "catalogue")
    assert found["n_items"] == 43


def test_the_table_carries_its_result_line(run_folder: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(run_folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    saved = read_json(run_folder / "metrics.json")
    assert saved["test"]["result_line"] in out.replace("\n", " ")
    for name in ("sasrec", "popularity", "markov", "random"):
        assert name in out
    assert f"{saved['test']['ndcg@10']:.4f}" in out


def test_anyones_recommendations(run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """The lists that `recommend` writes get, as anybody's lists, the run's own values."""
    recs = tmp_path / "recs.csv"
    assert main(["recommend", str(run_folder), "--split", "test", "-k", "200", "--out", str(recs)]) == 0
    data = Dataset.load(run_folder / "data")
    truth = pl.DataFrame(
        {
            "user_id": data.user_ids,
            "item_id": [data.item_ids[t - 1] for t in data.tokens[data.offsets[1:] - 1]],
        }
    )
    truth.write_csv(tmp_path / "truth.csv")
    capsys.readouterr()
    arguments = ["evaluate", "--recs", str(recs), "--truth", str(tmp_path / "truth.csv")]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    saved = read_json(run_folder / "metrics.json")["test"]
    for name in ("ndcg@10", "hr@10", "mrr@50", "recall@200"):
        assert document["recs"][name] == pytest.approx(saved[name], abs=1e-9), name
    assert main(arguments) == 0
    assert f"{saved['ndcg@10']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "tset"], "unknown split 'tset'"),
        (["--k", "0"], "k=0"),
        (["--k", "-3"], "k=-3"),
        (["--k", "ten"], "'ten'"),
        (["--candidates", "all"], "unknown candidates 'all'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--recs", "x.csv"], "both --recs FILE and --truth FILE"),
    ],
)
def test_mistakes(run_folder: Path, fails: Fails, options: list[str], message: str) -> None:
    assert message in fails("evaluate", run_folder, "--json", *options)


def test_what_is_no_run(tmp_path: Path, world_folder: Path, fails: Fails) -> None:
    assert "no run at" in fails("evaluate", tmp_path / "none")
    assert "is not a run folder" in fails("evaluate", tmp_path)
    assert "is a dataset, not a run" in fails("evaluate", world_folder)
    assert "give a run folder" in fails("evaluate")
    assert "missing.csv" in fails(
        "evaluate", "--recs", tmp_path / "missing.csv", "--truth", tmp_path / "t.csv"
    )
