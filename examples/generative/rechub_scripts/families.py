"""The three data sets that the reference document trains on: their folders, files and scripts."""

from __future__ import annotations

import shlex
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

    @property
    def training(self) -> str:
        """The script that trains HLLM."""
        return {"ml-1m": "run_hllm_movielens.py"}.get(self.name, f"run_hllm_{self.name.replace('-', '_')}.py")

    def command(self, script: str, **options: object) -> str:
        """What to type, from the project's root, to run a script; options of None are left out."""
        inside = script in (self.sequences, self.vectors)
        place = (
            f"cd examples/generative/data/{self.name}; python " if inside else "python examples/generative/"
        )
        given = {name: value for name, value in options.items() if value is not None}
        model = given.get("model_type")
        if model is not None and Path(str(model)).is_dir():  # typed elsewhere, a relative folder is another
            given["model_type"] = Path(str(model)).absolute()
        return f"{place}{shlex.join([script, *(w for n, v in given.items() for w in (f'--{n}', str(v)))])}"


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


def check_sequences(folder: Path, family: Family, **options: object) -> None:
    """ArtifactError, naming the script to run with `options`, unless vocabulary and windows are in `folder`."""
    missing = [
        name
        for name in ("vocab.pkl", *(f"{split}_data.pkl" for split in SPLITS))
        if not (folder / name).is_file()
    ]
    if missing:
        what = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
        raise ArtifactError(
            f"{folder} {what}; make the sequences first: {family.command(family.sequences, **options)} "
            "(or name the folder that has them)"
        )
