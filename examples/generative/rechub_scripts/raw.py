"""Raw files: found in any of the folders that the document gives, else downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from hllm.data.sources import get_source
from hllm.data.sources.download import fetch_source
from hllm.errors import DataError, FetchError
from hllm.unpack import unpack
from rechub_scripts.entry import say

# MovieLens's archive has its files in ml-1m/; the document unpacks it into data/ml-1m/ besides.
PLACES = (".", "ml-1m", "data/ml-1m", "data", "data/ml-1m/ml-1m")
ARCHIVES = {"ml-1m": "ml-1m.zip"}


def find_raw(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder, `folder` itself or one of PLACES in it, that has all of `names`, plain or gzipped."""
    for place in PLACES:
        inner = folder / place
        if all((inner / n).is_file() or (inner / f"{n}.gz").is_file() for n in names):
            return inner
    return None


def need_raw(source: str, folder: Path, names: Sequence[str], *, download: bool, overwrite: bool) -> Path:
    """The folder with the files `names` of data set `source`, fetched into `folder` if need be.

    An archive that was downloaded and not unpacked yet is unpacked. Raises DataError without
    `download`, FetchError where nothing can be had; both say where the files may be put.
    """
    if overwrite and download:
        _fetch_again(source, folder, names)
    elif (archive := folder / ARCHIVES.get(source, "")).is_file() and find_raw(folder, names) is None:
        say(f"unpacking {archive}")
        unpack(archive, folder)
    found = find_raw(folder, names)
    if found is not None:
        return found
    if not download:
        raise DataError(
            f"--no_download is given and {' and '.join(names)} are not in {folder}; {_advice(folder, names)}"
        )
    _fetch(source, folder, folder, names)
    found = find_raw(folder, names)
    if found is None:
        raise DataError(f"the download of {source} left no {', '.join(names)} in {folder}")
    return found


def _fetch_again(source: str, folder: Path, names: Sequence[str]) -> None:
    """Download into a folder beside, then replace the files that are there: a failure loses nothing."""
    fresh = folder / ".download"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _fetch(source, fresh, folder, names)
        target = find_raw(folder, names) or folder
        for name in get_source(source).files:
            for ending in ("", ".gz"):
                places = (fresh / f"{name}{ending}", *sorted(fresh.rglob(f"{Path(name).name}{ending}")))
                if (found := next((p for p in places if p.is_file()), None)) is not None:
                    _replace(found, target / f"{name}{ending}")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(new: Path, old: Path) -> None:
    """Put a file in the place of another, packed or not."""
    plain = old.with_name(old.name.removesuffix(".gz"))
    old.parent.mkdir(parents=True, exist_ok=True)
    os.replace(new, old)
    for other in (plain, plain.with_name(f"{plain.name}.gz")):
        if other != old:
            other.unlink(missing_ok=True)


def _fetch(source: str, target: Path, folder: Path, names: Sequence[str]) -> None:
    say(f"downloading {source} to {target} ({get_source(source).size})")
    try:
        fetch_source(source, target)
    except FetchError as err:
        raise FetchError(f"{err}. For this script: {_advice(folder, names)}") from err


def _advice(folder: Path, names: Sequence[str]) -> str:
    other = f" or {folder / 'data' / 'ml-1m'}" if "ratings.dat" in names else ""
    return f"put {', '.join(names)} into {folder}{other}, or name their folder with --data_dir"
