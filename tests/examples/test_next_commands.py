"""What a script says to type next is typed, word for word; and progress inside an epoch."""

from __future__ import annotations

import re

import pytest
import torch

from hllm import progress
from hllm.pipeline import Recommender
from rechub_scripts.families import BEAUTY, BOOKS, MOVIELENS

SCRIPTS = "examples/generative/data"


def after(text: str, mark: str) -> str:
    """The command that stands after `mark`, on lines of its own as a shell reads it."""
    (found,) = re.findall(f"{mark} (.*?)(?: \\(or name the folder that has them\\))?$", text, re.MULTILINE)
    return str(found).replace("; ", "\n")


@pytest.mark.parametrize(
    ("family", "layout", "state", "output"),
    [
        (MOVIELENS, "ml-1m", "rechub", True),
        (BOOKS, "bytedance", "rechub-doc", True),
        (BEAUTY, "beauty", "rechub-doc", False),
    ],
    ids=["movielens", "books", "beauty"],
)
def test_case_e15_next_lines_keep_folders_and_state(shell, raw_files, clone, family, layout, state, output):
    raw_files[layout](clone / "my raw files")
    shell.folder = clone / "my raw files"  # a relative folder, with spaces, and not the project's root
    options = f"--data_dir . --state {state}" + (" --output_dir ../made" if output else "")
    out = shell.type(f"python ../{SCRIPTS}/{family.name}/{family.sequences} {options} --max_seq_len 8")
    for step in ("sequences", "vectors"):
        shell.folder = clone
        command = after(out, "next, from the project's root:").replace("cuda", "cpu")
        assert ("--state rechub-doc" in command) == (state == "rechub-doc")
        out = shell.type(command.replace("tinyllama", "tfidf") + (" --epochs 1" if step == "vectors" else ""))
    run = Recommender.from_pretrained(shell.folder / f"hllm-{family.name}-tfidf", "cpu")
    assert run.config.preset == state
    assert (clone / ("made" if output else "my raw files/processed") / family.text_map).is_file()


def test_case_e15_commands_that_errors_name_keep_folders_too(shell, raw_files, clone):
    raw_files["ml-1m"](clone / "raw")
    place = f"--data_dir {clone / 'raw'} --output_dir {clone / 'made'}"
    vectors = f"python {SCRIPTS}/ml-1m/preprocess_hllm_data.py --device cpu --model_type tfidf {place}"
    shell.type(vectors, expect=2)
    shell.type(after(shell.errors, "make the sequences first:"))
    shell.folder = clone
    train = f"python examples/generative/run_hllm_movielens.py --device cpu --epochs 1 --dataset_path {clone / 'made'}"
    shell.type(f"{train} --model_type tfidf", expect=2)
    command = after(shell.errors, "make it with:")
    assert f"--output_dir {clone / 'made'}" in command
    shell.type(f"{command} --data_dir {clone / 'raw'}")
    shell.folder = clone
    shell.type(f"{train} --model_type tfidf")
    hstu = f"python examples/generative/run_hstu_movielens.py --device cpu --dataset_path {clone / 'nowhere'}"
    shell.type(hstu, expect=2)
    assert f"--output_dir {clone / 'nowhere'}" in shell.errors


def test_case_e15_a_relative_model_folder_is_named_in_full(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "models/mine") in MOVIELENS.command(MOVIELENS.vectors, model_type="models/mine")
    assert "--model_type tinyllama" in MOVIELENS.command(MOVIELENS.vectors, model_type="tinyllama")


@pytest.mark.parametrize(
    ("typed", "nearest"), [("--devise", "--device"), ("--epoks", "--epochs"), ("--Seed", "--seed")]
)
def test_case_e15_an_unknown_option_lists_all_options(shell, typed, nearest):
    shell.type(f"python examples/generative/run_hllm_movielens.py {typed} 1", expect=2)
    valid = shell.errors.split("valid: ")[1].strip().split(", ")
    assert f"did you mean '{nearest}'?" in shell.errors
    assert {"--device", "--epochs", "--seed", "--dropout", "--batch_size", "--help"} <= set(valid)
    assert "--batch-size" not in valid and len(valid) == len(set(valid))


def test_case_e15_training_tells_its_progress_inside_an_epoch(shell, raw_files, clone, monkeypatch):
    raw_files["ml-1m"](clone / SCRIPTS / "ml-1m")
    shell.type(
        f"python {SCRIPTS}/ml-1m/preprocess_ml_hstu.py\n"
        f"python {SCRIPTS}/ml-1m/preprocess_hllm_data.py --device cpu --model_type tfidf"
    )
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    shell.type(
        "python examples/generative/run_hllm_movielens.py --device cpu --model_type tfidf --epochs 2 --batch_size 8"
    )
    lines = [line for line in shell.errors.splitlines() if line.startswith("train: epoch ")]
    assert re.fullmatch(r"train: epoch 1/2, 0/\d+ steps", lines[0])  # before the first step, however long
    assert re.match(r"train: epoch 1/2, 1/\d+ steps, .+ left", lines[1])
    assert any(line.startswith("train: epoch 2/2, ") for line in lines)
    assert torch.load(clone / "model.pth", weights_only=True)
