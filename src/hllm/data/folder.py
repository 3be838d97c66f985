"""A dataset as a folder, whose files belong together or are refused.

`dataset.json`, written last, is the mark of a finished dataset and lists every other file with its
size and digest. Preparing a dataset anew leaves the old one readable until the new one is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm import artifacts
from hllm.artifacts import Manifest
from hllm.errors import ArtifactError

if TYPE_CHECKING:
    import polars as pl

MARKER = "dataset.json"
FORMAT, VERSION = "hllm-dataset", 1
ARRAYS = {
    "tokens": np.int32,
    "times": np.int64,
    "offsets": np.int64,
    "train_mask": np.bool_,
    "validation": np.int64,
    "test": np.int64,
}
TABLES = ("interactions", "items", "users")
OURS = {"packed", "embeddings", *(f"{name}.parquet" for name in TABLES)}
# What file managers leave everywhere.
LITTER = {"Thumbs.db", "desktop.ini"}
# Telltale files of raw data folders and the source that reads them.
RAW_FILES = {"u.data": "ml-100k", "ratings.dat": "ml-1m"}
TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".inter", ".json")
AGAIN = "prepare the dataset (or train the run that it is part of) again"
ATTEMPTS = 3  # at a folder that another process is replacing


def write_dataset(
    path: Path | str,
    meta: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    frames: Mapping[str, pl.DataFrame],
) -> None:
    """Write a dataset folder. A dataset that is there already is replaced, its `embeddings/` kept.

    Raises ArtifactError when `path` holds something else, or cannot be written.
    """
    check_target(path)
    # Packed arrays go first: they tell an unfinished dataset.
    artifacts.publish(path, MARKER, meta, {**_array_files(arrays), **_table_files(frames)})


def _array_files(arrays: Mapping[str, np.ndarray]) -> dict[str, Callable[[Path], object]]:
    return {array_file(name): partial(artifacts.write_array, array=array) for name, array in arrays.items()}


def _table_files(frames: Mapping[str, pl.DataFrame]) -> dict[str, Callable[[Path], object]]:
    return {table_file(name): partial(artifacts.write_table, frame=frame) for name, frame in frames.items()}


def array_file(name: str) -> str:
    """The file of an array in a folder's manifest."""
    return f"packed/{name}.npy"


def table_file(name: str) -> str:
    """The file of a table in a folder's manifest."""
    return f"{name}.parquet"


def check_target(target: Path | str) -> None:
    """ArtifactError unless `target` is new, empty, a dataset, or one whose writing was interrupted.

    Worth calling before long work, so that a wrong `--out` fails at once.
    """
    target = Path(target)
    with artifacts.disk_errors(f"write {target}"):
        if not target.exists():
            return artifacts.check_writable(target)
        if not target.is_dir():
            raise ArtifactError(f"{target} is a file; choose a folder for the dataset")
        if is_dataset(target) or _is_unfinished(target) or not own_names(target):
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


def open_dataset(path: Path | str) -> tuple[dict[str, Any], Manifest, dict[str, np.ndarray]]:
    """The content of `dataset.json`, the manifest, and the packed arrays, memory-mapped.

    Every file is checked against the manifest (large tables when they are read), a folder of an earlier
    hllm, which has none, for sizes alone. One that is being prepared anew gives the old dataset or the
    new one. ArtifactError says what the folder is instead, what is damaged, and what to do.
    """
    path = Path(path)
    document: dict[str, Any] = {}
    for _ in range(ATTEMPTS):
        before, document = document, _read_marker(path)
        meta = {key: value for key, value in document.items() if key != "files"}
        files = document.get("files", {})
        try:
            arrays = _read_arrays(path, meta, files)
            artifacts.check_manifest(path, files, later={table_file(name) for name in TABLES}, advice=AGAIN)
            return meta, files, arrays
        except ArtifactError:
            if document == before:
                raise
    raise ArtifactError(f"{path} is being written by another process; wait for it to end")


def _read_marker(path: Path) -> dict[str, Any]:
    with artifacts.disk_errors(f"read {path}"):
        if not path.exists():
            raise ArtifactError(
                f"no dataset at {path}; make one with: hllm data prepare NAME --from DIR "
                f"--out {path} (hllm data list shows the names)"
            )
        if not is_dataset(path):
            raise ArtifactError(f"{path} is not a dataset folder: {_what_is(path)}")
    version = artifacts.read_json(path / MARKER).get("version")
    if version != VERSION:
        raise ArtifactError(
            f"{path} has dataset version {version}, this hllm reads {VERSION}; "
            "upgrade hllm or prepare the dataset again"
        )
    return artifacts.read_document(path / MARKER, AGAIN)


def _read_arrays(path: Path, meta: Mapping[str, Any], files: Manifest) -> dict[str, np.ndarray]:
    """The packed arrays, memory-mapped, with types and sizes checked against `meta`."""
    places = {
        name: artifacts.check_file(path, files, array_file(name), AGAIN, digest=False) for name in ARRAYS
    }
    arrays = {name: artifacts.read_array(place) for name, place in places.items()}
    n = meta["n_interactions"]
    expected = {"tokens": n, "times": n, "train_mask": n, "offsets": meta["n_users"] + 1}
    expected |= {name: meta["targets"][name] for name in ("validation", "test")}
    for name, array in arrays.items():
        if array.shape != (expected[name],) or array.dtype != ARRAYS[name]:
            raise ArtifactError(
                f"{places[name]} has shape {array.shape} of {array.dtype}, not ({expected[name]},) of "
                f"{np.dtype(ARRAYS[name])}; the folder is damaged: {AGAIN}"
            )
    return arrays


def read_table(path: Path, files: Manifest, name: str) -> pl.DataFrame:
    """A table of a dataset that is open; ArtifactError where it is no longer that dataset's."""
    return artifacts.read_table(
        artifacts.check_file(
            path, files, table_file(name), f"if it was prepared anew, open it again, else {AGAIN}"
        )
    )


def check_arrays(path: Path, files: Manifest, arrays: Mapping[str, np.ndarray]) -> None:
    """ArtifactError unless arrays that are open hold, bit for bit, what the manifest says was written."""
    for name, array in arrays.items():
        if artifacts.digest_array(array) != files[array_file(name)]["sha256"]:
            raise ArtifactError(
                f"{artifacts.file_of(path, files, array_file(name))} was overwritten while it was open; {AGAIN}"
            )


def copy_dataset(
    source: Path,
    target: Path | str,
    meta: Mapping[str, Any],
    files: Manifest,
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Write what a run needs to recommend: an open dataset without interactions and embeddings.

    Where `target` holds just this already, nothing is written. ArtifactError if `source` is no longer
    the dataset that was opened.
    """
    if files and is_dataset(target):
        try:
            there, its_files, _ = open_dataset(target)
        except ArtifactError:
            there = {}
        if there == meta and all(_same(its_files, files, name) for name in its_files):
            return
    copies = {
        table_file(name): partial(artifacts.copy_file, artifacts.file_of(source, files, table_file(name)))
        for name in ("items", "users")
    }
    artifacts.publish(target, MARKER, meta, {**_array_files(arrays), **copies}, expected=files)


def _same(one: Manifest, other: Manifest, name: str) -> bool:
    return name in other and one[name]["sha256"] == other[name]["sha256"]


def own_names(path: Path) -> set[str]:
    """What is in a folder, without hidden files (`.DS_Store`, locks, unfinished files) and other litter."""
    return {e.name for e in path.iterdir() if not e.name.startswith(".") and e.name not in LITTER}


def remove_dataset(path: Path) -> None:
    """Remove a dataset's files, its mark first; embeddings and files of others stay, and their folders."""
    (path / MARKER).unlink(missing_ok=True)
    for part, stems, suffix in ((path, TABLES, ".parquet"), (path / "packed", ARRAYS, ".npy")):
        for entry in part.iterdir() if part.is_dir() else ():
            ours = entry.stem.partition("-")[0] in stems and entry.suffix == suffix
            if ours or (entry.name.startswith(".") and entry.suffix == ".tmp"):
                entry.unlink(missing_ok=True)
    for part in (path / "packed", path):
        with suppress(OSError):  # it is not there, or something of others is in it
            part.rmdir()


def _is_unfinished(path: Path) -> bool:
    """Whether an interrupted write left this: packed arrays and no others (or nothing but embeddings),
    and no marker. Parquet files alone could be the user's own tables. Other files do not matter."""
    names = own_names(path)
    if "packed" not in names:
        return names == {"embeddings"}
    stems = {Path(name).stem.partition("-")[0] for name in own_names(path / "packed")}
    return stems <= set(ARRAYS) and MARKER not in names


def _what_is(path: Path) -> str:
    """What a folder that is no dataset seems to be, and the next command."""
    if not path.is_dir():
        return "it is a file"
    names = sorted(own_names(path))
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
