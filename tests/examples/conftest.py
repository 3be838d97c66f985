"""A clean clone's scripts, small raw files in the published layouts, and a shell that types commands."""

from __future__ import annotations

import gzip
import io
import json
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
N_USERS, N_ITEMS = 30, 24


def events(seed: int = 0) -> list[tuple[int, int, int, int]]:
    """(user, item, rating, second) of 30 users with 6 to 14 events over 24 items, in shuffled file order."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(1, N_USERS + 1):
        n = int(random.integers(6, 15))
        chosen = random.choice(N_ITEMS, size=n, replace=False) + 1
        clock = 978_300_000 + user * 1000 + np.sort(random.integers(0, 90_000, size=n))
        rows += [
            (user, int(item), int(random.integers(3, 6)), int(t))
            for item, t in zip(chosen, clock, strict=True)
        ]
    return [rows[i] for i in random.permutation(len(rows))]


def write_ml_1m(folder: Path) -> None:
    """ratings.dat, movies.dat (latin-1) and users.dat; movie 2 k has the id 7 k + 3, so that ids have gaps."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{u}::{7 * i + 3}::{r}::{t}" for u, i, r, t in events()]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    movies = [f"{7 * i + 3}::Film {i}, The é (19{60 + i})::Drama|War" for i in range(1, N_ITEMS + 3)]
    (folder / "movies.dat").write_bytes(("\n".join(movies) + "\n").encode("latin-1"))
    (folder / "users.dat").write_text("".join(f"{u}::F::1::10::48067\n" for u in range(1, N_USERS + 1)))


def asin(item: int) -> str:
    return f"0{item * 7919 % 100_000_000:08d}X"  # with a letter: pandas makes numbers of the others


def write_books_raw(folder: Path) -> None:
    """Stanford's two files: ratings without a header, and one Python literal a line."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"A{u:013d},{asin(i)},{r}.0,{t}" for u, i, r, t in events()]
    (folder / "ratings_Books.csv").write_text("\n".join(rows) + "\n")
    items = [
        {"asin": asin(i), "title": f"Book {i} isn't", "description": "About\nit &amp; more"}
        for i in range(1, N_ITEMS + 5)
    ]
    with gzip.open(folder / "meta_Books.json.gz", "wt") as file:
        file.write("\n".join(repr(item) for item in items) + "\n")


def write_books_bytedance(folder: Path) -> None:
    """ByteDance's two files as two `wget` leave them: both are called amazon_books.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{asin(i)},A{u:013d},{t}" for u, i, _, t in events()]
    (folder / "amazon_books.csv").write_text("item_id,user_id,timestamp\n" + "\n".join(rows) + "\n")
    items = [f'{asin(i)},"About it, ""twice""",Book {i}' for i in range(1, N_ITEMS + 1)]
    (folder / "amazon_books.csv.1").write_text("item_id,description,title\n" + "\n".join(items) + "\n")


def write_beauty(folder: Path) -> None:
    """The 5-core reviews as JSON lines, and the metadata as Python literals, unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews = [
        {"reviewerID": f"A{u}", "asin": f"B{i:03d}", "overall": float(r), "unixReviewTime": t}
        for u, i, r, t in events()
    ]
    (folder / "reviews_Beauty_5.json").write_text("".join(f"{json.dumps(row)}\n" for row in reviews))
    items = [
        {"asin": f"B{i:03d}", "title": f"Soap {i}", "categories": [["Beauty", "Soap"]], "price": 4.5}
        for i in range(1, N_ITEMS + 3)
    ]
    (folder / "meta_Beauty.json").write_text("".join(f"{row!r}\n" for row in items))


@dataclass
class Shell:
    """Types command lines, one after the other, as a reader would; `python` is this process."""

    folder: Path
    output: str = ""
    errors: str = ""  # of the last command

    def type(self, text: str, expect: int = 0, **changes: str) -> str:
        """Run the lines of `text`, words that are keys of `changes` replaced; returns what they print.

        `expect` is the exit code that every one of them must have.
        """
        start = len(self.output)
        for line in text.replace("\\\n", " ").splitlines():
            words = [changes.get(word, word) for word in shlex.split(line, comments=True)]
            if words and words[0] == "cd":
                self.folder = (self.folder / words[1]).resolve()
                assert self.folder.is_dir(), f"cd {words[1]}"
            elif words and words[0] == "python":
                assert self._python(words[1:]) == expect, (line, self.errors)
            elif words:
                raise AssertionError(f"nobody types {words[0]} here")
        return self.output[start:]

    def _python(self, words: list[str]) -> int:
        script = self.folder / words[0]
        out, err, argv, path, cwd = io.StringIO(), io.StringIO(), sys.argv, sys.path[:], Path.cwd()
        sys.argv = [str(script), *words[1:]]
        os.chdir(self.folder)
        try:
            with redirect_stdout(out), redirect_stderr(err):
                runpy.run_path(str(script), run_name="__main__")
            return 0
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            sys.argv, sys.path[:] = argv, path
            os.chdir(cwd)
            self.output += out.getvalue()
            self.errors = err.getvalue()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what a clean clone has under examples/."""
    source = ROOT / "examples" / "generative"
    shutil.copytree(source, tmp_path / "examples" / "generative", ignore=shutil.ignore_patterns("processed"))
    return tmp_path


@pytest.fixture
def shell(clone: Path) -> Shell:
    return Shell(clone)


@pytest.fixture
def raw_files() -> dict[str, Callable[[Path], None]]:
    """Writers of small raw files by layout."""
    return {
        "ml-1m": write_ml_1m,
        "books": write_books_raw,
        "bytedance": write_books_bytedance,
        "beauty": write_beauty,
    }


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two small layers with a byte tokenizer, in a folder as the hub has them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={"<pad>": 0, **{letter: i + 1 for i, letter in enumerate(letters)}}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.2,
    )
    LlamaModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder
