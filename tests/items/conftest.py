"""Tiny random models with a byte tokenizer, and a small catalogue; nothing is downloaded."""

import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
)

from hllm.data.dataset import Dataset
from hllm.testing.llms import byte_tokenizer as make_tokenizer

TITLES = [
    "Up",
    "Seven",
    "Heat (1995)",
    "Alien",
    "The Long Goodbye",
    "Brazil",
    "Heat (1995)",
    "Ran",
    "Tampopo",
]
GENRES = ["Animation", "Crime", "Crime", "Horror", None, "Comedy", "Crime", "War", "Comedy"]


def write_model(folder: Path, kind: str = "llama", seed: int = 0, **options) -> Path:
    """A tiny model of `kind`, with weights large enough that its tokens influence each other."""
    torch.manual_seed(seed)
    size = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "llama":
        config = LlamaConfig(**size, intermediate_size=64, num_key_value_heads=2, initializer_range=0.2)
        model = LlamaModel(config)
    elif kind == "bert":
        model = BertModel(BertConfig(**size, intermediate_size=64, initializer_range=0.2))
    else:
        config = T5Config(vocab_size=258, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
        model = T5Model(config)
    model.save_pretrained(folder)
    make_tokenizer(**({"pad_token": "<pad>", "eos_token": "<eos>"} | options)).save_pretrained(folder)
    return folder


@pytest.fixture(name="byte_tokenizer")
def _byte_tokenizer():
    return make_tokenizer


@pytest.fixture(scope="session")
def save_model(tmp_path_factory):
    """`write_model`, which makes each model once a session and copies it from then on."""
    made: dict[tuple, Path] = {}

    def save(folder: Path, *arguments, **options) -> Path:
        choice = (arguments, tuple(sorted(options.items())))
        if choice not in made:
            made[choice] = write_model(tmp_path_factory.mktemp("models") / "model", *arguments, **options)
        return Path(shutil.copytree(made[choice], folder, dirs_exist_ok=True))

    return save


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HLLM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def make_dataset(tmp_path):
    """Make and save a dataset whose items are (item_id, title, genres) rows, each with one event."""

    def make(titles=TITLES, genres=GENRES, ids=None, name="data") -> Dataset:
        ids = list(range(1, len(titles) + 1)) if ids is None else ids
        items = pl.DataFrame(
            {"item_id": ids, "title": titles, "genres": genres},
            schema_overrides={"title": pl.String, "genres": pl.String},
        )
        events = pl.DataFrame({"user_id": [0] * len(ids), "item_id": ids, "timestamp": range(len(ids))})
        return Dataset.from_tables(events, items, name="tiny").save(tmp_path / name)

    return make
