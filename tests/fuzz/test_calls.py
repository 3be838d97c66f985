"""Malformed values in every public call: it works, or raises an HLLMError of one line."""

from __future__ import annotations

import copy
import random
import shutil
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import hllm
from hllm.config import DOTTED, Config, parse_assignments
from hllm.errors import HLLMError
from hllm.evaluate.files import evaluate_files, evaluate_frames
from hllm.pipeline import Recommender
from hllm.testing import world_tables

from .hostile import harm, value

Case = Callable[[random.Random, Path, Path, Recommender], Any]  # the folder of all, and one of its own


def one(rng: random.Random, **sound: Any) -> dict[str, Any]:
    """The sound arguments with one or two of them hostile."""
    for name in rng.sample(sorted(sound), rng.choice((1, 1, 2)) if len(sound) > 1 else 1):
        sound[name] = value(rng)
    return sound


def config(rng: random.Random, work: Path, own: Path, trained: Recommender) -> Any:
    if rng.random() < 0.3:
        return parse_assignments(
            [value(rng) if rng.random() < 0.5 else f"{rng.choice(sorted(DOTTED))}={value(rng)}"]
        )
    if rng.random() < 0.3:
        return Config(**{rng.choice(sorted(DOTTED.values())).rpartition(".")[2]: value(rng)})
    if rng.random() < 0.5:
        return hllm.load_config(
            **one(rng, preset="demo", file=work / "settings.yaml", overrides={"epochs": 1})
        )
    names = sorted(set(DOTTED) - {"preset"})  # given already: Python itself refuses it twice
    return Recommender.from_preset("sasrec", **{rng.choice(names).rpartition(".")[2]: value(rng)})


def tables(rng: random.Random, work: Path, own: Path, trained: Recommender) -> Any:
    interactions, items, users = world_tables(6, 6)
    if rng.random() < 0.5:  # one value of a table
        frame, column = rng.choice([(interactions, "timestamp"), (interactions, "item_id"), (items, "title")])
        rows = frame.to_dicts()
        rng.choice(rows)[column] = value(rng)
        import pandas as pd

        broken = pd.DataFrame(
            {name: pd.Series([r[name] for r in rows], dtype=object) for name in frame.columns}
        )
        pair = (broken, items) if frame is interactions else (interactions, broken)
        return hllm.Dataset.from_tables(*pair)
    options = {
        "interactions": interactions, "items": items, "users": users, "name": "a", "columns": None,
        "text_fields": ["title"], "time_unit": "s", "min_interactions": 1, "min_rating": None, "split": "leave-one-out",
        "seed": 0, "ties": "file", "drop_duplicates": False, "ratio": None, "cutoffs": None, "cold_share": None,
        "targets": None,
    }  # fmt: skip
    return hllm.Dataset.from_tables(**one(rng, **options))


def opening(rng: random.Random, work: Path, own: Path, trained: Recommender) -> Any:
    if rng.random() < 0.5:
        folder = own / rng.choice(("data", "run"))
        shutil.copytree(work / folder.name, folder)
        harm(rng.choice([p for p in sorted(folder.rglob("*")) if p.is_file()]), rng)
        opened = (
            hllm.load_dataset(folder) if folder.name == "data" else Recommender.from_pretrained(folder, "cpu")
        )
        return opened.items if isinstance(opened, hllm.Dataset) else opened.recommend(k=1)
    if rng.random() < 0.5:
        return hllm.load_dataset(value(rng))
    return Recommender.from_pretrained(**one(rng, path=work / "run", device="cpu"))


def recommend(rng: random.Random, work: Path, own: Path, trained: Recommender) -> Any:
    sound: dict[str, Any] = {
        "users": ["u001"], "k": 3, "keep_seen": False, "exclude": (), "candidates": "interacted", "only": None,
        "columns": (),
    }  # fmt: skip
    who = rng.choice(["users", "history", "titles", "split"])
    if who != "users":
        del sound["users"]
        sound[who] = {"history": [["001"]], "titles": [["Golden River (1951)"]], "split": "test"}[who]
    return trained.recommend(**one(rng, **sound))


def evaluate(rng: random.Random, work: Path, own: Path, trained: Recommender) -> Any:
    if rng.random() < 0.4:
        recs, truth = pl.read_csv(work / "recs.csv"), pl.read_csv(work / "truth.csv")
        return evaluate_frames(**one(rng, recs=recs, truth=truth, ks=[1, 10], bootstrap=10))
    if rng.random() < 0.4:
        for name in ("recs.csv", "truth.csv"):
            shutil.copyfile(work / name, own / name)
        harm(own / rng.choice(("recs.csv", "truth.csv")), rng)
        return evaluate_files(own / "recs.csv", own / "truth.csv")
    metrics = trained.evaluate(
        **one(rng, data=None, split="test", k=10, keep_seen=False, candidates="interacted", bootstrap=10)
    )
    return metrics[value(rng)] if rng.random() < 0.3 else metrics.to_frame()


def embedding(rng: random.Random, work: Path, own: Path, trained: Recommender) -> Any:
    data = hllm.load_dataset(work / "data")
    sound: dict[str, Any] = {
        "item_llm": "random", "pooling": "mean", "prompt": None, "text_fields": ["title"], "device": "cpu",
        "precision": "auto", "batch_size": 64, "max_tokens": 256,
    }  # fmt: skip
    return hllm.embed(**one(rng, **sound), dataset=data, progress=False)


def adding(rng: random.Random, work: Path, own: Path, trained: Recommender) -> Any:
    return copy.copy(trained).add_items(value(rng))


def fitting(rng: random.Random, work: Path, own: Path, trained: Recommender) -> Any:
    rec = Recommender(trained.config)
    return rec.fit(**one(rng, data=trained.dataset, out=None, device="cpu", embeddings=None), progress=False)


CALLS: dict[str, Case] = {
    "config": config, "tables": tables, "opening": opening, "recommend": recommend, "evaluate": evaluate,
    "embedding": embedding, "adding": adding, "fitting": fitting,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("count", [20, pytest.param(130, marks=pytest.mark.slow)])
def test_malformed_calls(sound: Path, work: Path, trained: Recommender, name: str, count: int) -> None:
    refused, wrong = 0, []
    for i in range(count):
        rng = random.Random(f"{name} {i}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                own = work / str(i)
                own.mkdir()
                CALLS[name](rng, work, own, trained)
            except HLLMError as err:
                refused += 1
                if not str(err).strip() or "\n" in str(err) or len(str(err)) > 5_000:
                    wrong.append(f"case {i} says {str(err)[:5_000]!r}")
            except Exception as err:
                wrong.append(f"case {i} ends in {type(err).__name__}: {str(err)[:200]}; {where(err)}")
    assert not wrong, "\n".join(wrong)
    assert refused > count // 4


def where(err: BaseException) -> str:
    """The last lines of hllm on the way to an error."""
    frames = [f for f in traceback.extract_tb(err.__traceback__) if "/hllm/" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-1:-4:-1])
