"""Damage of every kind to every kind of file we write: found, rebuilt or refused, never silent.

A case copies a sound folder, harms one file of it, and uses the folder. What comes back must be what
came back before, or an HLLMError of one line.
"""

from __future__ import annotations

import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hllm import artifacts
from hllm.data.dataset import Dataset
from hllm.errors import HLLMError
from hllm.items.embed import embed, load_embeddings
from hllm.pipeline import Recommender
from hllm.testing import world
from hllm.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from hllm.train.config import TrainingConfig
from hllm.train.files import LAST
from hllm.train.optim import Optimizer

# ------------------------------------------------------------------------- kinds of folders


def make_dataset(folder: Path, seed: int) -> None:
    world(20, 15, seed=seed).save(folder)


def use_dataset(folder: Path) -> Any:
    """All that a dataset says, as training and recommending read it."""
    data = Dataset.load(folder)
    data.verify()
    tables = [data.items, data.users, data.interactions]
    return (
        data.meta,
        [a.tolist() for a in data._arrays().values()],
        [t.to_dict(as_series=False) for t in tables],
        data.item_ids,
    )


def make_copy(folder: Path, seed: int) -> None:
    world(20, 15, seed=seed).copy_to(folder)


def use_copy(folder: Path) -> Any:
    data = Dataset.load(folder)
    return data.meta, [a.tolist() for a in data._arrays().values()], data.item_ids, data.user_ids


def _network() -> tuple[torch.nn.Module, Optimizer]:
    network = torch.nn.Linear(5, 3)
    return network, Optimizer(network, TrainingConfig())


def make_checkpoint(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network, optimiser = _network()
    network(torch.ones(2, 5)).sum().backward()
    optimiser.dense.step()
    save_checkpoint(folder / LAST, Progress(step=seed), network, optimiser, None, {"seed": 0})


def use_checkpoint(folder: Path) -> Any:
    network, optimiser = _network()
    progress = load_checkpoint(folder / LAST, network, optimiser, None)
    moments = [{k: v.tolist() for k, v in s.items()} for s in optimiser.dense.state.values()]
    return progress, [p.tolist() for p in network.parameters()], moments


def make_store(folder: Path, seed: int) -> None:
    embed(world(20, 15, seed=seed).save(folder), "random", progress=False)


def use_store(folder: Path) -> Any:
    """Vectors as training reads them; what a store says of how it was made is for the record."""
    embeddings = load_embeddings(Dataset.load(folder), "random")
    return embeddings.vectors.tolist(), embeddings.spec["key"]


def make_run(folder: Path, seed: int) -> None:
    settings = {"d_model": 8, "n_layers": 1, "n_heads": 2, "epochs": 1, "max_len": 8, "seed": seed}
    recommender = Recommender.from_preset("sasrec", **settings)
    recommender.fit(world(20, 15), device="cpu", progress=False).save_pretrained(folder)


def use_run(folder: Path) -> Any:
    recommender = Recommender.from_pretrained(folder, device="cpu")
    state = {name: value.tolist() for name, value in recommender.network.state_dict().items()}
    return state, recommender.config, recommender.record, recommender.recommend(k=3).to_dict(as_series=False)


FOLDERS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], Any]]] = {
    "dataset": (make_dataset, use_dataset),
    "copy": (make_copy, use_copy),
    "checkpoint": (make_checkpoint, use_checkpoint),
    "store": (make_store, use_store),
    "run": (make_run, use_run),
}
WITHOUT_OTHERS = {"checkpoint"}  # one file, which may as a whole be another's: its identity is compared

# ------------------------------------------------------------------------- kinds of damage


def flip(path: Path, rng: random.Random, other: Path) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 3))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random, other: Path) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def lengthen(path: Path, rng: random.Random, other: Path) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randrange(1, 9)))


def zero(path: Path, rng: random.Random, other: Path) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    data[start : start + 64] = bytes(len(data[start : start + 64]))
    path.write_bytes(data)


def remove(path: Path, rng: random.Random, other: Path) -> None:
    path.unlink()


def swap(path: Path, rng: random.Random, other: Path) -> None:
    """The file of the same name of another folder, or another file of this one."""
    siblings = [p for p in path.parent.iterdir() if p.is_file() and p != path]
    shutil.copyfile(rng.choice([other, *siblings]), path)


def exchange(path: Path, rng: random.Random, other: Path) -> None:
    """Two neighbouring parts of the file, in the other order."""
    data = path.read_bytes()
    at, size = rng.randrange(len(data)), rng.choice((1, 4, 8, 64))
    path.write_bytes(
        data[:at] + data[at + size : at + 2 * size] + data[at : at + size] + data[at + 2 * size :]
    )


DAMAGE = (flip, flip, cut, lengthen, zero, remove, swap, exchange)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for name, (make, _) in FOLDERS.items():
        for seed in (0, 1):
            make(folder / f"{name}-{seed}", seed)
    return folder


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_case_e17_no_damage_is_silent(tmp_path: Path, sound: Path, kind: str, count: int) -> None:
    rng = random.Random(f"{kind} {count}")
    use = FOLDERS[kind][1]
    whole, another = sound / f"{kind}-0", sound / f"{kind}-1"
    part = "embeddings" if kind == "store" else ""
    files = sorted(p.relative_to(whole) for p in (whole / part).rglob("*") if p.is_file())
    before = use(whole)
    refused = 0
    for i in range(count):
        folder, file, harm = tmp_path / str(i), rng.choice(files), rng.choice(DAMAGE)
        if harm is swap and kind in WITHOUT_OTHERS:
            harm = flip
        shutil.copytree(whole, folder)
        harm(folder / file, rng, another / file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert use(folder) == before, f"{harm.__name__} of {file} (case {i}) went unnoticed"
        except HLLMError as err:
            refused += 1
            assert "\n" not in str(err) and len(str(err)) < 1000
        shutil.rmtree(folder)
    assert refused > count // 2


def test_numbers_of_safetensors_are_checked(tmp_path: Path) -> None:
    """Also where nothing but our reader could notice: within the numbers."""
    path = tmp_path / "a.safetensors"
    artifacts.write_tensors(
        path, {"x": torch.arange(100.0), "y": torch.ones(3, dtype=torch.bfloat16)}, {"n": 1}
    )
    whole = path.read_bytes()
    for at in np.linspace(8, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        try:
            tensors, metadata = artifacts.read_tensors(path)
        except HLLMError:
            continue
        assert metadata in ({"n": 1}, {}) and torch.equal(tensors["x"], torch.arange(100.0))
