"""The three data sets that the reference document trains on: their folders, files and scripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hllm.errors import ArtifactError
from hllm.formats.rechub import SPLITS


@dataclass(frozen=True)
class Family:
    """One data set of the document.

    name        of its folder in `examples/generative/data/`
    title       for people
    sequences, vectors   its two preprocessing scripts
    text_map    the file of prompts
    """

    name: str
    title: str
    sequences: str
    vectors: str
    text_map: str

    def command(self, script: str, options: str = "") -> str:
        """What to type, from the project's root, to run one of the scripts."""
        return f"cd examples/generative/data/{self.name}; python {script} {options}".rstrip()


MOVIELENS = Family(
    "ml-1m", "MovieLens-1M", "preprocess_ml_hstu.py", "preprocess_hllm_data.py", "movie_text_map.pkl"
)
BOOKS = Family(
    "amazon-books",
    "Amazon Books",
    "preprocess_amazon_books.py",
    "preprocess_amazon_books_hllm.py",
    "item_text_map.pkl",
)
BEAUTY = Family(
    "amazon-beauty",
    "Amazon Beauty",
    "preprocess_amazon_beauty.py",
    "preprocess_amazon_beauty_hllm.py",
    "item_text_map.pkl",
)


def check_sequences(folder: Path, family: Family) -> None:
    """ArtifactError, naming the script to run, unless vocabulary and windows are in `folder`."""
    missing = [
        name
        for name in ("vocab.pkl", *(f"{split}_data.pkl" for split in SPLITS))
        if not (folder / name).is_file()
    ]
    if missing:
        what = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
        raise ArtifactError(
            f"{folder} {what}; make the sequences first: {family.command(family.sequences)} "
            "(or name the folder that has them)"
        )
