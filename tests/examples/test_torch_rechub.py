"""What the scripts write, read by torch-rechub's own code; its folders, read by the scripts."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hllm.formats import rechub as formats
from hllm.pipeline import Recommender

ML = "examples/generative/data/ml-1m"
PREPARE = f"python {ML}/preprocess_ml_hstu.py\npython {ML}/preprocess_hllm_data.py --device cpu --model_type "
TRAIN = (
    "python examples/generative/run_hllm_movielens.py --epochs 1 --device cpu --max_seq_len 8 --model_type "
)


def load(path: Path):
    return pickle.loads(path.read_bytes())


@pytest.mark.rechub
@pytest.mark.parametrize("state", ["rechub", "rechub-doc"])
def test_torch_rechub_trains_on_our_folder_and_loads_our_weights(shell, raw_files, clone, tiny_llm, state):
    theirs = pytest.importorskip("torch_rechub.models.generative.hllm", reason="needs torch-rechub installed")
    data_tools = pytest.importorskip("torch_rechub.utils.data")
    raw_files["ml-1m"](clone / ML)
    shell.type(f"{PREPARE}{tiny_llm}".replace("hstu.py", f"hstu.py --state {state}"))
    shell.type(f"{TRAIN}{tiny_llm} --state {state}")
    processed = clone / ML / "processed"
    vocab = load(processed / "vocab.pkl")
    n = len(vocab["item_to_idx"]) + 1 if state == "rechub" else len(vocab)
    train = load(processed / "train_data.pkl")
    generator = data_tools.SequenceDataGenerator(
        train["seq_tokens"], train["seq_positions"], train["targets"], train["seq_time_diffs"]
    )
    tokens, _, seconds, targets = next(iter(generator.generate_dataloader(batch_size=4)[0]))
    vectors = torch.load(processed / "item_embeddings_tiny-llama.pt", weights_only=True)
    model = theirs.HLLMModel(vectors, n, d_model=16, n_heads=4, n_layers=2, max_seq_len=8)
    model.load_state_dict(torch.load(clone / "model.pth", weights_only=True))
    scores = model(tokens[:, -8:], seconds[:, -8:])
    assert scores.shape == (4, 8, n) and scores.isfinite().all() and int(targets.max()) < n


def foreign(processed: Path) -> None:
    """Take away all that torch-rechub's scripts would not have written."""
    (processed / "hllm.json").unlink()
    shutil.rmtree(processed / "dataset")


def histories(data) -> list[tuple[list[int], list[bool], list[int], list[int]]]:
    """Every user's tokens, what of them is trained on, and which are held out; in a fixed order."""
    held = {name: np.isin(np.arange(len(data.tokens)), at) for name, at in data.queries.items()}
    columns = (data.tokens, data.train_mask, held["validation"], held["test"])
    pairs = zip(data.offsets[:-1], data.offsets[1:], strict=True)
    return sorted(tuple(column[first:last].tolist() for column in columns) for first, last in pairs)


@pytest.mark.parametrize("state", ["rechub", "rechub-doc"])
def test_a_folder_of_torch_rechub_is_taken_as_it_is(shell, raw_files, clone, state):
    raw_files["ml-1m"](clone / ML)
    shell.type(f"{PREPARE}tfidf".replace("hstu.py", f"hstu.py --state {state}"))
    processed = clone / ML / "processed"
    vocab = formats.read_vocab(processed)
    if state == "rechub-doc":  # rows by movie id, as the older script had them
        table = torch.load(processed / "item_embeddings_tfidf.pt", weights_only=True)
        by_id = torch.zeros(max(vocab.item_ids) + 1, table.shape[1])
        by_id[torch.tensor(vocab.item_ids)] = table[1:]
        torch.save(by_id, processed / "item_embeddings_tfidf.pt")
    shell.type(f"{TRAIN}tfidf --state {state} --save_dir ours")
    foreign(processed)
    out = shell.type(f"{TRAIN}tfidf --state {state} --save_dir theirs")
    assert "no packed dataset" in out
    ours, theirs = (
        Recommender.from_pretrained(clone / name / "hllm-ml-1m-tfidf", "cpu") for name in ("ours", "theirs")
    )
    assert histories(ours.dataset) == histories(theirs.dataset)  # users are numbered anew
    n = len(vocab.item_ids) + 1  # films without an event are in the raw files alone
    assert torch.equal(*(r.network.source.parts["text"].table[:n] for r in (ours, theirs)))


def test_texts_of_a_foreign_folder_come_from_raw_files(shell, raw_files, clone):
    raw_files["ml-1m"](clone / ML)
    shell.type(f"python {ML}/preprocess_ml_hstu.py")
    foreign(clone / ML / "processed")
    shell.type(f"python {ML}/preprocess_hllm_data.py --device cpu --model_type random")
    meta = json.loads((clone / ML / "processed/dataset/dataset.json").read_text())
    assert meta["text_fields"] == ["title", "genres"] and meta["n_catalogue"] == 26


def test_windows_of_another_run_are_noticed(shell, raw_files, clone):
    """A packed dataset never stands in for windows that were written after it."""
    raw_files["ml-1m"](clone / ML)
    shell.type(f"{PREPARE}tfidf")
    processed = clone / ML / "processed"
    other = clone / "other"
    shell.type(f"python {ML}/preprocess_ml_hstu.py --min_seq_len 10 --output_dir {other}")
    for name in ("vocab.pkl", "train_data.pkl", "val_data.pkl", "test_data.pkl"):
        shutil.copy(other / name, processed / name)
    assert "no packed dataset" in shell.type(f"{TRAIN}tfidf")
    n_users = json.loads((processed / "dataset/dataset.json").read_text())["n_users"]
    assert n_users == len(load(other / "test_data.pkl")["targets"])


@pytest.mark.parametrize("state", ["rechub", "rechub-doc"])
def test_model_pth_scores_as_the_run_does_where_windows_are_full(shell, raw_files, clone, tiny_llm, state):
    """torch-rechub's model with our weights, over its padded windows, gives our packed model's scores.

    Where a window is not full, its model lets events attend to padding, and ours does not.
    """
    from hllm.compat.rechub import load_model
    from hllm.data.batches.queries import eval_queries, query_batches

    raw_files["ml-1m"](clone / ML)
    shell.type(f"{PREPARE}{tiny_llm}".replace("hstu.py", f"hstu.py --state {state}"))
    shell.type(f"{TRAIN}{tiny_llm} --state {state}".replace("--max_seq_len 8", "--max_seq_len 6"))
    run = Recommender.from_pretrained(clone / "hllm-ml-1m-tiny-llama", "cpu")
    queries = eval_queries(run.dataset, "test")
    (_, batch), *_ = query_batches(queries, 6)
    n = run.dataset.n_candidates
    ours = run.network.score(run.network.query(batch), torch.arange(1, n + 1))
    padded = load_model(clone / "model.pth", state)
    full = [row for row, length in enumerate(batch.lengths.tolist()) if length == 6]
    assert len(full) >= 10
    for row in full:
        at = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        seconds = batch.times[at][-1] - batch.times[at]
        scores = padded(batch.tokens[at][None], seconds[None])[0, -1, 1:]
        torch.testing.assert_close(scores, ours[row], rtol=1e-4, atol=1e-4)
