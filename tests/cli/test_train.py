"""`hllm train`: a run folder, an item LLM trained too, and mistakes in one line."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hllm.artifacts import read_json, read_jsonl, write_text
from hllm.cli import main
from hllm.data.dataset import Dataset
from hllm.evaluate.metrics import Metrics
from hllm.pipeline import Recommender
from hllm.testing import world

Fails = Callable[..., str]
Capture = pytest.CaptureFixture[str]
FILES = {
    "config.json", "model.safetensors", "metrics.json", "history.jsonl", "report.html", "README.md", "examples.json",
    "data", "checkpoints", "ranks",
}  # fmt: skip


def test_a_run_folder_holds_everything(run_folder: Path, world_folder: Path) -> None:
    assert {p.name for p in run_folder.iterdir()} == FILES
    record = read_json(run_folder / "config.json")
    assert record["config"]["preset"] == "sasrec" and record["config"]["training"]["max_len"] == 12
    assert record["best"]["epoch"] in (1, 2, 3)
    history = read_jsonl(run_folder / "history.jsonl")
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert record["best"]["value"] == max(row["ndcg@10"] for row in history)
    metrics = read_json(run_folder / "metrics.json")
    assert set(metrics) == {"validation", "test", "baselines"}
    assert metrics["validation"]["ndcg@10"] == pytest.approx(record["best"]["value"], abs=1e-12)
    for split in ("validation", "test"):
        told = metrics[split]["checkpoint"]
        assert told == {"epoch": record["best"]["epoch"], "rule": "best validation ndcg@10"}
    by_user = pl.read_parquet(run_folder / "ranks" / "test.parquet")
    assert by_user.columns == ["user_id", "item_id", "rank", "tied"] and len(by_user) == 60
    assert (by_user["rank"] <= 10).mean() == pytest.approx(metrics["test"]["hr@10"])
    assert by_user["tied"].mean() == metrics["test"]["protocol"]["tied_share"]
    events = pl.read_parquet(world_folder / "interactions.parquet")
    held_out = events.group_by("user_id", maintain_order=True).last()
    assert by_user.select("user_id", "item_id").equals(held_out.select("user_id", "item_id"))
    ranks = Metrics.load(run_folder / "ranks" / "test.safetensors")
    assert ranks.values == {k: v for k, v in metrics["test"].items() if "@" in k}
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    assert metrics["test"]["result_line"] in page
    assert f"{metrics['test']['ndcg@10']:.4f}" in page


def test_text_models_say_which_embeddings_they_take(
    command: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    more = ["--set", "item_llm=random", "--set", "whiten_rank=8", "--set", "adapter_hidden=16"]
    assert main(command(tmp_path / "run", *more, preset="demo")) == 0
    out, err = capsys.readouterr()
    assert "item embeddings: random, fields title,genres (store " in err
    assert "popularity" in out and "markov" in out and "demo | world " in out
    assert "best epoch" in out and str(tmp_path / "run") in out
    assert read_json(tmp_path / "run" / "config.json")["embeddings"]["model"] == "random"


def test_a_large_catalogue_is_told_how_it_is_trained(
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a line, and in the run's configuration; the same command finds the run again."""
    monkeypatch.setattr("hllm.runs.settle.LAZY_FACTOR", 1)
    few = {"loss": "sampled", "n_negatives": 1, "batch_tokens": 4, "max_len": 4, "epochs": 1}
    arguments = command(tmp_path / "run", *(f"--set={key}={value}" for key, value in few.items()))
    assert main(arguments) == 0
    err = capsys.readouterr().err
    assert "each step takes the batch's items and its negatives, not all" in err and "id_updates=lazy" in err
    assert read_json(tmp_path / "run" / "config.json")["config"]["training"]["id_updates"] == "lazy"
    assert main(arguments) == 0
    assert "holds this run, finished" in capsys.readouterr().err


def test_settings_from_a_file_then_from_set(
    command: Callable[..., list[str]], world_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    write_text(file, "preset: sasrec\nd_model: 8\nn_layers: 1\nn_heads: 2\nepochs: 9\n")
    arguments = ["train", str(world_folder), "--config", str(file), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--set", "epochs=1", "--set", "batch_tokens=300", "--device", "cpu"]) == 0
    config = read_json(tmp_path / "run" / "config.json")["config"]
    assert (config["preset"], config["users"]["d_model"], config["training"]["epochs"]) == ("sasrec", 8, 1)


def test_a_finished_run_is_shown_again(
    command: Callable[..., list[str]], tmp_path: Path, capsys: Capture, fails: Fails
) -> None:
    run = tmp_path / "run"
    assert main(command(run)) == 0
    first = capsys.readouterr().out
    weights, created = (run / "model.safetensors").read_bytes(), read_json(run / "config.json")["created"]
    (run / "report.html").unlink()  # as if killed between training and report
    assert main(command(run)) == 0
    out, err = capsys.readouterr()
    assert out == first
    assert "holds this run, finished; --overwrite trains it again" in err
    assert (run / "report.html").exists()
    assert read_json(run / "config.json")["created"] == created

    line = fails(*command(run, "--set", "dropout=0.1"))
    assert "holds another run (dropout 0.5 -> 0.1)" in line and "--overwrite" in line
    assert (run / "model.safetensors").read_bytes() == weights

    assert main(command(run, "--set", "dropout=0.1", "--overwrite")) == 0
    assert read_json(run / "config.json")["config"]["users"]["dropout"] == 0.1
    assert (run / "model.safetensors").read_bytes() != weights


def test_a_model_below_a_baseline_is_told_so(
    command: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    run, bad = tmp_path / "run", ["--set", "learning_rate=1e-9", "--set", "epochs=1"]
    assert main(command(run, *bad)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict: ")]
    assert line.startswith("verdict: sasrec is below markov: ") and "test NDCG@10 0." in line
    assert f'<p class="verdict">{line}</p>' in (run / "report.html").read_text(encoding="utf-8")
    assert main(["evaluate", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert line in err.splitlines() and "verdict" not in out


def test_a_long_training_on_a_cpu_is_told_before_it_starts(
    command: Callable[..., list[str]], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hllm.runs.cpu_time.RATE", 100.0)
    assert main(command(tmp_path / "run")) == 0
    err = capsys.readouterr().err
    warning = "warning: preset sasrec is made for a GPU; on this CPU its 3 epochs take about "
    assert err.index(warning) < err.index("epoch 1/3")
    assert main(command(tmp_path / "run")) == 0  # finished: only shown
    assert "made for a GPU" not in capsys.readouterr().err


def test_several_seeds(command: Callable[..., list[str]], tmp_path: Path, capsys: Capture) -> None:
    assert main(command(tmp_path / "runs", "--seeds", "2", "--set", "epochs=1")) == 0
    out = capsys.readouterr().out
    assert "2 seeds of sasrec" in out
    summary = read_json(tmp_path / "runs" / "seeds.json")
    documents = [read_json(tmp_path / "runs" / f"seed-{seed}" / "metrics.json") for seed in (0, 1)]
    values = [document["test"]["ndcg@10"] for document in documents]
    assert values[0] != values[1]
    found = summary["test ndcg@10"]
    assert found["values"] == values
    assert found["mean"] == pytest.approx(sum(values) / 2)
    assert found["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert f"{found['mean']:.4f}" in out and f"{found['deviation']:.4f}" in out


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "hllm-light"], "unknown preset 'hllm-light' (did you mean 'hllm-lite'?); valid: "),
        (["--set", "epoch=3"], "unknown setting 'epoch' (did you mean 'epochs'?)"),
        (["--set", "epochs"], "is not key=value"),
        (["--set", "epochs=1", "--set", "training.epochs=2"], "--set gives epochs twice: 1 and 2"),
        (
            ["--no-capture", "--set", "capture=true"],
            "capture is given twice: True by --set, False by another",
        ),
        (["--set", "epochs=many"], "setting epochs='many'"),
        (["--set", "epochs=0"], "setting epochs=0"),
        (["--set", "d_model=30"], "d_model=30 is not a multiple of n_heads=4"),
        (["--set", "valid_metric=auc"], "setting valid_metric='auc'"),
        (["--device", "gpu"], "unknown device 'gpu' (did you mean 'cpu'?); valid: auto, cpu"),
        (["--seeds", "0"], "0"),
        (["--config", "none.yaml"], "config file none.yaml not found"),
        (["--preset", "demo"], "no embeddings of smollm2-135m"),
        (["--presett", "demo"], "No such option: --presett"),
    ],
)
def test_mistakes_write_nothing(
    world_folder: Path, tmp_path: Path, fails: Fails, options: list[str], message: str
) -> None:
    line = fails("train", world_folder, "--preset", "sasrec", "--out", tmp_path / "run", *options)
    assert message in line
    assert not (tmp_path / "run").exists()


def test_missing_embeddings_come_with_their_command(world_folder: Path, tmp_path: Path, fails: Fails) -> None:
    line = fails("train", world_folder, "--preset", "demo", "--out", tmp_path / "run")
    assert f"hllm embed {world_folder} --item-llm smollm2-135m" in line


def test_folders_that_are_no_dataset(tmp_path: Path, run_folder: Path, fails: Fails) -> None:
    assert "no dataset at" in fails("train", tmp_path / "none", "--out", tmp_path / "run")
    (tmp_path / "other").mkdir()
    write_text(tmp_path / "other" / "ratings.csv", "a,b\n")
    assert "is not a dataset folder" in fails("train", tmp_path / "other", "--out", tmp_path / "run")
    assert "it is a run folder" in fails("train", run_folder, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--resume"]])
def test_a_foreign_folder_is_never_written_to(
    command: Callable[..., list[str]], tmp_path: Path, fails: Fails, option: list[str]
) -> None:
    write_text(tmp_path / "mine" / "README.md", "my notes")
    write_text(tmp_path / "mine" / "data" / "ratings.csv", "my ratings")
    line = fails(*command(tmp_path / "mine", *option))
    assert "is not empty and holds no run" in line and "choose another --out" in line
    assert sorted(p.name for p in (tmp_path / "mine").rglob("*")) == ["README.md", "data", "ratings.csv"]


def test_a_dataset_is_never_a_run_folder(
    world_folder: Path, tmp_path: Path, fails: Fails, small: list[str]
) -> None:
    copy = Dataset.load(world_folder).save(tmp_path / "world").path
    assert "choose another --out" in fails(
        "train", copy, "--preset", "sasrec", "--out", copy, "--overwrite", *small
    )
    assert Dataset.load(copy).n_users == 60


def test_the_default_run_folder(
    world_folder: Path, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(world_folder), "--preset", "sasrec", "--device", "cpu", *small]) == 0
    assert Recommender.from_pretrained("runs/world-sasrec", "cpu").config.training.epochs == 3


def test_baselines_by_name_and_no_evaluation(
    world_folder: Path,
    small: list[str],
    tmp_path: Path,
    capsys: Capture,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["train", str(world_folder), "--preset", "sasrec", "--device", "cpu", *small, "--out"]
    one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
    assert main([*command, one, "--baselines", "popularity"]) == 0
    assert set(read_json(Path(one) / "metrics.json")["baselines"]["test"]) == {"popularity"}
    assert main([*command, two, "--baselines", "none", "--set", "valid_users=7"]) == 0
    document = read_json(Path(two) / "metrics.json")
    assert not document.get("baselines", {}).get("test")
    assert document["test"]["protocol"]["checkpoint"] == "best validation ndcg@10 of 7 sampled users"
    assert "7 users, drawn by the seed" in capsys.readouterr().err
    assert main([*command, three, "--no-evaluate"]) == 0
    assert f"next: hllm evaluate {three}" in capsys.readouterr().err
    assert not (Path(three) / "metrics.json").exists()
    assert main(["evaluate", three, "--device", "cpu", "--baselines", "item-knn,ease", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["baselines"]["test"]) == {"item-knn", "ease"}
    assert "or none alone" in fails(*command, one, "--baselines", "none,ease")
    assert "or none alone" in fails(*command, one, "--baselines", "ease,")
    assert "did you mean 'ease'" in fails(*command, one, "--baselines", "EASE")
    assert "unknown baseline 'markow'" in fails(*command, one, "--baselines", "markow")
    assert "unknown baseline 'pop'" in fails("evaluate", three, "--baselines", "pop")
    monkeypatch.setattr("hllm.baselines.ease.MOST_ITEMS", 20)
    told = fails(*command, str(tmp_path / "four"), "--baselines", "popularity,ease")
    assert (
        "at most 20. Use the baseline item-knn" in told and not (tmp_path / "four").exists()
    )  # before training


# ---------------------------------------------------------------------- an item LLM trained too


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hllm.testing.llms import write_model

    return write_model(tmp_path_factory.mktemp("llm") / "tiny")


def live_command(llm: Path, command: Callable[..., list[str]], out: Path, *more: str) -> list[str]:
    return command(out, "--set", f"item_llm={llm}", *more, preset="hllm-small")


def test_an_item_llm_is_trained_by_one_setting(
    tiny_llm: Path, command: Callable[..., list[str]], tmp_path: Path, capsys: Capture
) -> None:
    """No `hllm embed` before; afterwards every command works, and the model embeds another catalogue."""
    pytest.importorskip("peft")
    run, other = tmp_path / "run", tmp_path / "other"
    arguments = live_command(tiny_llm, command, run, "--set", "items.train=lora")
    assert main(arguments) == 0
    assert {p.name for p in run.iterdir()} == FILES | {"item_llm"}
    captured = capsys.readouterr()
    assert f"item LLM, trained (lora): {tiny_llm}" in captured.err
    assert "Writing" not in captured.err
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "effective rank" in page and "graph, chunks of 16,384 tokens" in page
    assert "trained with the user model (lora)" in (run / "README.md").read_text(encoding="utf-8")
    assert main(arguments) == 0  # finished: only shown again
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    assert main(["recommend", str(run), "-k", "2", "--user", "u001"]) == 0
    world(seed=1, string_ids=True).save(other)
    capsys.readouterr()
    assert main(["embed", str(other), "--item-llm", str(run), "--device", "cpu"]) == 0
    assert f"{run} from folder" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_live_training_goes_on(
    tiny_llm: Path,
    command: Callable[..., list[str]],
    tmp_path: Path,
    run_python: Callable[..., Any],
    breaking: Callable[..., str],
) -> None:
    arguments = live_command(tiny_llm, command, tmp_path / "killed", "--set", "items.train=full")
    killed = run_python("-c", breaking(2, "SIGKILL"), *arguments)
    assert killed.returncode == -signal.SIGKILL
    assert main([*arguments, "--resume"]) == 0
    straight = live_command(tiny_llm, command, tmp_path / "straight", "--set", "items.train=full")
    assert main(straight) == 0
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "straight")]
    assert files[0] == files[1]


def test_a_live_run_starts_from_a_frozen_one(
    tiny_llm: Path, command: Callable[..., list[str]], tmp_path: Path, fails: Fails, world_folder: Path
) -> None:
    assert (
        main(
            [
                "embed",
                str(world_folder),
                "--item-llm",
                str(tiny_llm),
                "--device",
                "cpu",
                "--precision",
                "fp32",
            ]
        )
        == 0
    )
    frozen = live_command(tiny_llm, command, tmp_path / "frozen", "--set", "items.train=frozen")
    assert main(frozen) == 0
    live = live_command(tiny_llm, command, tmp_path / "live", "--init-from", str(tmp_path / "frozen"))
    assert main(live) == 0
    assert "no run at" in fails(*live[:-1], str(tmp_path / "nothing"), "--overwrite")
