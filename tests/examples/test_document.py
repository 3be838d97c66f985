"""The reference document's commands, typed as they stand.

Only the device, the model and (its erratum) the number of `../` are changed.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hllm.pipeline import Recommender

QUICK_START = r"""
# 1. Enter data directory
cd examples/generative/data/ml-1m

# 2. Preprocess MovieLens-1M data (HSTU format)
python preprocess_ml_hstu.py

# 3. Unified HLLM data preprocessing (text extraction + embedding generation)
# Option A: TinyLlama-1.1B (recommended, 2GB GPU, ~10 minutes)
python preprocess_hllm_data.py --model_type tinyllama --device cuda

# 4. Return to project root and train model
cd ../../../
python examples/generative/run_hllm_movielens.py \
    --model_type tinyllama \
    --epoch 5 \
    --batch_size 512 \
    --device cuda
"""

STEP_3 = r"""
python examples/generative/run_hllm_movielens.py \
    --model_type tinyllama \
    --epoch 5 \
    --batch_size 512 \
    --learning_rate 1e-3 \
    --weight_decay 1e-5 \
    --max_seq_len 200 \
    --device cuda \
    --seed 42
python examples/generative/run_hllm_movielens.py --loss_type cross_entropy --device cuda --epochs 1
"""

BOOKS = r"""
cd examples/generative/data/amazon-books
python preprocess_amazon_books.py \
    --data_dir . \
    --output_dir ./processed \
    --max_seq_len 200 \
    --min_seq_len 5
python preprocess_amazon_books_hllm.py \
    --data_dir . \
    --output_dir ./processed \
    --model_type tinyllama \
    --device cuda
cd ../../../
python examples/generative/run_hllm_amazon_books.py \
    --model_type tinyllama \
    --batch_size 64 \
    --epochs 5 \
    --device cuda
"""

BOOKS_ADVANCED = r"""
python examples/generative/run_hllm_amazon_books.py \
    --model_type baichuan2 \
    --batch_size 32 \
    --epochs 10 \
    --learning_rate 1e-3 \
    --n_layers 4 \
    --dropout 0.1 \
    --max_seq_len 200 \
    --device cuda
"""

BEAUTY = r"""
cd examples/generative/data/amazon-beauty
python preprocess_amazon_beauty.py
python preprocess_amazon_beauty_hllm.py --model_type tinyllama --device cuda
cd ../../../
python examples/generative/run_hllm_amazon_beauty.py --model_type tinyllama --epochs 2 --device cuda
"""

UP = {"../../../": "../../../..", "cuda": "cpu"}
WINDOWS = ["train_data.pkl", "val_data.pkl", "test_data.pkl"]
SINGLE = ["seq_tokens.pkl", "seq_positions.pkl", "seq_time_diffs.pkl", "targets.pkl"]


def load(path: Path):
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize("place", ["", "data/ml-1m"], ids=["beside the script", "below it"])
def test_quick_start(shell, raw_files, tiny_llm, clone, place):
    here = clone / "examples/generative/data/ml-1m"
    raw_files["ml-1m"](here / place)
    out = shell.type(QUICK_START, tinyllama=str(tiny_llm), **UP)
    processed = here / "processed"
    for name in ["vocab.pkl", "movie_text_map.pkl", *WINDOWS, *SINGLE]:
        assert (processed / name).is_file(), name
    texts = load(processed / "movie_text_map.pkl")
    assert (
        texts[10]
        == "Compress the following sentence into embedding: title: Film 1, The é (1961)genres: Drama|War"
    )
    assert len(texts) == 26  # all of movies.dat
    tokens = load(processed / "vocab.pkl")["item_to_idx"]
    vectors = torch.load(processed / "item_embeddings_tiny-llama.pt", weights_only=True)
    assert vectors.shape == (len(tokens) + 1, 16) and not vectors[0].any() and vectors[1:].any(1).all()
    assert shell.folder == clone
    assert "Hit@10:" in out and "NDCG@200:" in out and "seen kept" in out
    assert len(load(processed / "targets.pkl")) == sum(len(load(processed / n)["targets"]) for n in WINDOWS)
    weights = torch.load(clone / "model.pth", weights_only=True)
    assert weights["item_embeddings"].shape == vectors.shape
    assert weights["position_embedding.weight"].shape == (200, 16)
    run = Recommender.from_pretrained(clone / "hllm-ml-1m-tiny-llama", "cpu")
    assert run.config.training.epochs == 5 and run.config.preset == "rechub"
    assert run.config.training.batch_tokens == 512 * run.config.training.passes
    assert run.recommend(users=[1], k=5).height == 5


def test_step_3_with_every_flag(shell, raw_files, clone):
    raw_files["ml-1m"](clone / "examples/generative/data/ml-1m")
    first = QUICK_START[: QUICK_START.index("# 4.")]
    shell.type(first, tinyllama="tfidf", cuda="cpu")
    shell.type("cd ../../../..")
    shell.type(STEP_3.replace("--epochs 1", "--epochs 1 --model_type tfidf"), tinyllama="tfidf", **UP)
    assert (
        Recommender.from_pretrained(clone / "hllm-ml-1m-tfidf", "cpu").config.objective.loss
        == "cross_entropy"
    )


@pytest.mark.parametrize("layout", ["books", "bytedance"])
def test_books(shell, raw_files, tiny_llm, clone, layout):
    here = clone / "examples/generative/data/amazon-books"
    raw_files[layout](here)
    out = shell.type(BOOKS, tinyllama=str(tiny_llm), **UP)
    assert "NDCG@10:" in out
    vocab = load(here / "processed/vocab.pkl")
    assert vocab["item_to_idx"]["<PAD>"] == 0 and vocab["idx_to_item"][0] == "<PAD>"
    train = load(here / "processed/train_data.pkl")
    assert all(
        len(row) == len(ago) for row, ago in zip(train["seq_tokens"], train["seq_time_diffs"], strict=True)
    )
    texts = load(here / "processed/item_text_map.pkl")
    item = vocab["idx_to_item"][1]
    assert texts[item].startswith("Compress the following sentence into embedding: title: Book ")
    assert "description: About" in texts[item]
    vectors = torch.load(here / "processed/item_embeddings_tiny-llama.pt", weights_only=True)
    assert vectors.shape == (len(vocab["item_to_idx"]), 16) and not vectors[0].any()
    shell.type(BOOKS_ADVANCED, baichuan2=str(tiny_llm), **UP)
    assert (
        Recommender.from_pretrained(clone / "hllm-amazon-books-tiny-llama", "cpu").config.users.n_layers == 4
    )


@pytest.mark.parametrize("state", ["rechub", "rechub-doc"])
def test_beauty(shell, raw_files, clone, state):
    here = clone / "examples/generative/data/amazon-beauty"
    raw_files["beauty"](here)
    commands = "\n".join(
        f"{line} --state {state}" if line.startswith("python") else line for line in BEAUTY.splitlines()
    )
    assert "NDCG@10:" in shell.type(commands, tinyllama="tfidf", **UP)
    vocab = load(here / "processed/vocab.pkl")
    vectors = torch.load(here / "processed/item_embeddings_tfidf.pt", weights_only=True)
    texts = load(here / "processed/item_text_map.pkl")
    if state == "rechub":
        assert len(vectors) == len(vocab["item_to_idx"]) + 1 and not vectors[0].any()
    else:
        assert min(vocab.values()) == 0 and list(texts) == list(vocab) and len(vectors) == len(vocab)
        assert vectors[0].any()
    assert "title: Soap" in texts["B001"] and "categories: Beauty, Soap" in texts["B001"]


@pytest.mark.parametrize("script", ["run_hstu_movielens.py", "run_hstu_amazon_books.py"])
@pytest.mark.parametrize("state", ["rechub", "rechub-doc"])
def test_hstu(shell, raw_files, clone, script, state):
    data, layout, first = {
        "run_hstu_movielens.py": ("ml-1m", "ml-1m", "preprocess_ml_hstu.py"),
        "run_hstu_amazon_books.py": ("amazon-books", "bytedance", "preprocess_amazon_books.py"),
    }[script]
    raw_files[layout](clone / "examples/generative/data" / data)
    small = "--epoch 1 --max_seq_len 8 --d_model 8 --n_heads 2"
    out = shell.type(
        f"python examples/generative/data/{data}/{first}\n"
        f"python examples/generative/{script} --device cpu --state {state} {small}"
    )
    assert "Hit@10:" in out
    weights = torch.load(clone / "model.pth", weights_only=True)
    assert weights["token_embedding.weight"].shape == (25, 8)
    assert ("output_projection.weight" in weights) == (state == "rechub-doc")


@pytest.mark.slow
def test_quick_start_on_ml_100k(shell, shared_data, clone):
    """MovieLens-100K in ML-1M's layout, in the state of the document for once."""
    here, source = clone / "examples/generative/data/ml-1m/data/ml-1m", shared_data / "ml-100k"
    here.mkdir(parents=True)
    (here / "ratings.dat").write_text((source / "u.data").read_text().replace("\t", "::"))
    movies = [line.split("|") for line in (source / "u.item").read_text(encoding="latin-1").splitlines()]
    (here / "movies.dat").write_text(
        "".join(f"{row[0]}::{row[1]}::Drama\n" for row in movies), encoding="latin-1"
    )
    shell.type(QUICK_START.replace("--epoch 5", "--epoch 1 --max_seq_len 30"), tinyllama="tfidf", **UP)
    processed = clone / "examples/generative/data/ml-1m/processed"
    assert len(load(processed / "targets.pkl")) == 97_171 + 943 + 943
    tokens = load(processed / "train_data.pkl")["seq_tokens"]
    assert tokens.dtype == np.int32 and tokens.shape == (97_171, 200)
