"""A dataset as a folder: written so that an interrupted run leaves nothing that looks finished.

All files are built in a temporary folder beside the target and then moved into place, with
`dataset.json`, the mark of a finished dataset, removed first and written last.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import artifacts
from hllm.errors import ArtifactError

if TYPE_CHECKING:
    import polars as pl

MARKER = "dataset.json"
FORMAT, VERSION = "hllm-dataset", 1
ARRAYS = ("tokens", "times", "offsets", "train_mask", "validation", "test")
TABLES = ("interactions", "items", "users")
# Telltale files of raw data folders and the source that reads them.
RAW_FILES = {"u.data": "ml-100k", "ratings.dat": "ml-1m"}
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".inter", ".json")


def write_dataset(
    path: Path | str,
    meta: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    frames: Mapping[str, pl.DataFrame],
) -> None:
    """Write a dataset folder. A dataset that is there already is replaced, its `embeddings/` kept.

    Raises ArtifactError when `path` holds something else, or cannot be written.
    """
    target = Path(path)
    check_target(target)
    with _temporary_sibling(target) as temporary:
        for name, array in arrays.items():
            artifacts.write_array(temporary / "packed" / f"{name}.npy", array)
        for name, frame in frames.items():
            artifacts.write_table(temporary / f"{name}.parquet", frame)
        _install(temporary, target)
    artifacts.write_json(target / MARKER, meta)


def check_target(target: Path | str) -> None:
    """ArtifactError unless `target` is new, empty, a dataset, or one whose writing was interrupted.

    Worth calling before long work, so that a wrong `--out` fails at once.
    """
    target = Path(target)
    if not target.exists():
        return
    if not target.is_dir():
        raise ArtifactError(f"{target} is a file; choose a folder for the dataset")
    if is_dataset(target) or _is_unfinished(target) or not any(target.iterdir()):
        return
    raise ArtifactError(f"{target} is not empty and no dataset ({_what_is(target)}); choose another folder")


def is_dataset(path: Path | str) -> bool:
    """Whether `path` holds a finished dataset of ours (of any version)."""
    marker = Path(path) / MARKER
    if not marker.is_file():
        return False
    try:
        meta = artifacts.read_json(marker)
    except ArtifactError:
        return False
    return isinstance(meta, dict) and meta.get("format") == FORMAT


def read_meta(path: Path | str) -> dict[str, Any]:
    """The checked `dataset.json`; ArtifactError says what the folder is instead, and what to do."""
    path = Path(path)
    if not path.exists():
        raise ArtifactError(
            f"no dataset at {path}; make one with: hllm data prepare NAME --from DIR "
            f"--out {path} (hllm data list shows the names)"
        )
    if not is_dataset(path):
        raise ArtifactError(f"{path} is not a dataset folder: {_what_is(path)}")
    meta: dict[str, Any] = artifacts.read_json(path / MARKER)
    if meta.get("version") != VERSION:
        raise ArtifactError(
            f"{path} has dataset version {meta.get('version')}, this hllm reads {VERSION}; "
            "upgrade hllm or prepare the dataset again"
        )
    return meta


def read_arrays(path: Path | str, meta: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The packed arrays, memory-mapped, with sizes checked against `meta`."""
    path = Path(path)
    arrays = {name: artifacts.read_array(path / "packed" / f"{name}.npy") for name in ARRAYS}
    n = meta["n_interactions"]
    expected = {"tokens": n, "times": n, "train_mask": n, "offsets": meta["n_users"] + 1}
    expected |= {name: meta["targets"][name] for name in ("validation", "test")}
    for name, size in expected.items():
        if arrays[name].shape != (size,):
            raise ArtifactError(
                f"{path}/packed/{name}.npy has shape {arrays[name].shape}, not ({size},); "
                "the folder is damaged: prepare the dataset again"
            )
    return arrays


def copy_dataset(source: Path | str, target: Path | str) -> None:
    """Copy a dataset folder without interactions and embeddings: what a run needs to recommend."""
    source, target = Path(source), Path(target)
    (target / MARKER).unlink(missing_ok=True)
    for name in ("items", "users"):
        artifacts.copy_file(source / f"{name}.parquet", target / f"{name}.parquet")
    for name in ARRAYS:
        artifacts.copy_file(source / "packed" / f"{name}.npy", target / "packed" / f"{name}.npy")
    artifacts.copy_file(source / MARKER, target / MARKER)


@contextmanager
def _temporary_sibling(target: Path) -> Iterator[Path]:
    """An empty folder on the same disk as `target`, removed at the end."""
    target = target.absolute()
    _sweep(target)
    temporary = target.with_name(f".{target.name}.{_host()}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as err:
        raise ArtifactError(f"cannot write beside {target}: {err.strerror}; choose another folder") from err
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what killed processes of this machine left beside `target`.

    Another machine's processes cannot be asked whether they live, so theirs stay.
    """
    mine = re.compile(rf"\.{re.escape(target.name)}\.{re.escape(_host())}\.(\d+)\.tmp")
    if not target.parent.is_dir():
        return
    for entry in target.parent.iterdir():
        match = mine.fullmatch(entry.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)


def _host() -> str:
    return re.sub(r"\W", "-", platform.node()) or "here"


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # there `os.kill` ends a process instead of asking after it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _install(temporary: Path, target: Path) -> None:
    """Move every file into `target`. Packed arrays go first: they tell an unfinished dataset."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / MARKER).unlink(missing_ok=True)
        (target / "packed").mkdir(exist_ok=True)
        for file in sorted(temporary.rglob("*"), key=lambda f: (f.parent == temporary, f.name)):
            if file.is_file():
                os.replace(file, target / file.relative_to(temporary))
    except OSError as err:
        raise ArtifactError(f"cannot write {target}: {err.strerror or err}") from err


def _is_unfinished(path: Path) -> bool:
    """Whether only an interrupted write leaves such a folder: packed arrays (or nothing but
    embeddings) and no marker. Parquet files alone could be the user's own tables."""
    names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")}
    ours = {"packed", "embeddings", *(f"{name}.parquet" for name in TABLES)}
    return names == {"embeddings"} or ("packed" in names and names <= ours)


def _what_is(path: Path) -> str:
    """What a folder that is no dataset seems to be, and the next command."""
    if not path.is_dir():
        return "it is a file"
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "it is empty; fill it with: hllm data prepare NAME --from DIR --out " + str(path)
    if _is_unfinished(path):
        return "its preparation was interrupted; run the same hllm data prepare command again"
    if "config.json" in names and {"model.safetensors", "metrics.json", "history.jsonl"} & set(names):
        return f"it is a run folder; use it with: hllm evaluate {path}, or give the dataset it was trained on"
    for file, source in RAW_FILES.items():
        if file in names:
            return (
                f"it holds raw {source} files; prepare them with: "
                f"hllm data prepare {source} --from {path} --out DATASET"
            )
    if inner := [n for n in names if is_dataset(path / n)]:
        return f"the dataset is inside it: {path / inner[0]}"
    tables = [n for n in names if n.lower().endswith(TABLE_SUFFIXES) and n != MARKER]
    if tables:
        return (
            f"it holds {', '.join(tables[:3])}; prepare them with: "
            f"hllm data prepare tabular --interactions {path / tables[0]} --out DATASET"
        )
    return f"it holds {', '.join(names[:3])}{' and more' * (len(names) > 3)}"
