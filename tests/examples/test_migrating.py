"""docs/migrating.md: the second column of its tables, run row by row on small data."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from hllm.cli import main
from hllm.formats import rechub as formats
from hllm.testing.llms import tiny, write_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrating.md"
QUICK = ["--set", "epochs=1", "--device", "cpu"]  # one epoch on the CPU, for the test alone


def rows(heading: str) -> list[tuple[str, str]]:
    """(theirs, code of ours) of the table under a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"## From {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    found = []
    for line in lines:
        theirs, ours = re.fullmatch(r"\| (.*) \| `([^`]+)` \|", line).groups()
        found.append((theirs, ours))
    return found


def run(code: str, places: dict[str, str]) -> None:
    """Run a command of `hllm`, or Python, with the page's names for folders replaced."""
    for name, place in places.items():
        code = re.sub(rf"\b{name}\b", place, code)
    if not code.startswith("hllm "):
        exec(code, {})
        return
    words = shlex.split(code)[1:]
    if words[0] == "train":
        words = shlex.split(re.sub(r" --set epochs=\d+", "", code))[1:] + QUICK
    assert main(words) == 0, code


def places(tmp_path: Path) -> dict[str, str]:
    named = {name: str(tmp_path / name.lower()) for name in ("RAW", "DATASET", "RUN", "PROCESSED")}
    return {**named, "LLM": "random"}


def test_every_row_from_torch_rechub(shell, raw_files, clone, tmp_path):
    raw = clone / "raw"
    raw_files["ml-1m"](raw)
    shell.type(
        f"python examples/generative/data/ml-1m/preprocess_ml_hstu.py --data_dir {raw} --output_dir processed\n"
        "python examples/generative/data/ml-1m/preprocess_hllm_data.py --model_type random --device cpu "
        f"--data_dir {raw} --output_dir processed\n"
        "python examples/generative/run_hllm_movielens.py --model_type random --epoch 1 --device cpu "
        "--dataset_path processed --save_dir processed"
    )
    table = rows("torch-rechub")
    assert len(table) >= 20
    for _, ours in table:
        run(ours, places(tmp_path))
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert formats.read_vocab(tmp_path / "processed").layout == "nested"


def test_every_row_from_bytedance(raw_files, tmp_path):
    raw_files["bytedance"](tmp_path / "raw" / "bytedance")
    raw_files["books"](tmp_path / "raw" / "books")
    pixel = tmp_path / "raw" / "pixel"
    shutil.copytree(tmp_path / "raw" / "bytedance", pixel / "dataset")
    (pixel / "information").mkdir()
    (pixel / "dataset" / "amazon_books.csv").rename(pixel / "dataset" / "Pixel200K.csv")
    (pixel / "dataset" / "amazon_books.csv.1").rename(pixel / "information" / "Pixel200K.csv")
    llm = str(write_model(tmp_path / "llm"))
    named = {**places(tmp_path), "ITEM_LLM": llm, "USER_LLM": llm}
    named["CHECKPOINT"], named["EXPORTED"] = str(tmp_path / "pytorch_model.bin"), str(tmp_path / "exported")
    weights = {
        f"{half}_llm.{n}": w for half in ("item", "user") for n, w in tiny("llama").state_dict().items()
    }
    own = {"item_emb_tokens": torch.ones(1, 1, 32), "logit_scale": torch.tensor(2.6)}
    torch.save(weights | own, named["CHECKPOINT"])
    table = rows("ByteDance's HLLM")
    assert len(table) >= 21
    for _, ours in table:
        # Each source is prepared; training then goes on with whichever came last.
        if "prepare" in ours:
            shutil.rmtree(tmp_path / "dataset", ignore_errors=True)
        run(ours, named)
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.rechub
def test_the_first_column_imports_what_torch_rechub_has():
    pytest.importorskip("torch_rechub", reason="needs torch-rechub installed")
    for theirs, _ in rows("torch-rechub"):
        if theirs.startswith("`from torch_rechub"):
            exec(theirs.strip("`"), {})


def test_weights_of_the_page_are_torch_rechubs(shell, raw_files, clone):
    """`load_model` reads what a script wrote, and its scores are finite."""
    from hllm.compat.rechub import load_model

    raw_files["ml-1m"](clone / "examples/generative/data/ml-1m")
    shell.type(
        "python examples/generative/data/ml-1m/preprocess_ml_hstu.py\n"
        "python examples/generative/data/ml-1m/preprocess_hllm_data.py --model_type random --device cpu\n"
        "python examples/generative/run_hllm_movielens.py --model_type random --epoch 1 --device cpu --max_seq_len 8"
    )
    model = load_model(clone / "model.pth")
    scores = model(torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5]]))
    assert scores.shape == (1, 8, 25) and scores.isfinite().all()
