"""Amazon Books' raw files as people have them: Stanford's or ByteDance's, under any of their names.

Stanford's   ratings_Books.csv, meta_Books.json.gz
ByteDance's  amazon_books.csv twice: in dataset/ and information/, or in one folder, where wget
             calls the second amazon_books.csv.1; told apart by their columns
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hllm.data.reading.catalogue import read_catalogue, read_item_csv
from hllm.data.reading.event_files import read_events
from hllm.data.reading.files import optional_file
from hllm.data.reading.pairs import find_csv
from hllm.data.sources.amazon import EDITIONS
from hllm.data.sources.bytedance import FIELDS, NAMES
from hllm.errors import DataError
from rechub_scripts.entry import say
from rechub_scripts.raw import need_raw

if TYPE_CHECKING:
    import polars as pl

SOURCES = ("auto", "raw", "bytedance")
RAW = {"interactions": "ratings_Books.csv", "items": "meta_Books.json"}
FETCHED = {"raw": "amazon-books", "bytedance": "bytedance-books"}
STANFORD = EDITIONS["2014"]


@dataclass(frozen=True)
class Found:
    """A raw file and whose it is: "raw" (Stanford's) or "bytedance"."""

    source: str
    path: Path


def need_file(folder: Path, kind: str, source: str, *, download: bool, overwrite: bool) -> Found:
    """The file of `kind` ("interactions" or "items") in `folder`, downloaded if need be.

    `source` "auto" takes what lies there, ByteDance's if both do, as release 0.9 prefers it. Raises
    DataError naming what is there, FetchError where a download fails.
    """
    if overwrite and download:
        chosen = source if source != "auto" else _there(folder, kind, "auto", "bytedance")
        need_raw(FETCHED[chosen], folder, (), download=True, overwrite=True)
    found = find(folder, kind, source)
    if found is None and download:
        chosen = "bytedance" if source == "auto" else source
        names = (
            [RAW[kind]] if chosen == "raw" else ["dataset/amazon_books.csv", "information/amazon_books.csv"]
        )
        need_raw(FETCHED[chosen], folder, names, download=True, overwrite=False)
        found = find(folder, kind, source)
    if found is None:
        raise DataError(_missing(folder, kind, source, download))
    if source == "auto" and find(folder, kind, _other(found.source)) is not None:
        say(
            f"both Stanford's and ByteDance's files are here; taking {found.path} (--data_source raw for the other)"
        )
    return found


def find(folder: Path, kind: str, source: str) -> Found | None:
    """The file of `kind` from `source`, or None; "auto" looks for ByteDance's, then for Stanford's."""
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist; name the one with the raw files with --data_dir")
    if source in ("auto", "bytedance") and (csv := find_csv(folder, NAMES, kind)) is not None:
        return Found("bytedance", csv)
    if source in ("auto", "raw"):
        ratings = optional_file(folder, RAW[kind])
        if ratings is not None:
            return Found("raw", ratings)
    return None


def interactions(found: Found) -> pl.DataFrame:
    """The interactions of a file, in its order."""
    return read_events(found.path, STANFORD.order if found.source == "raw" else None)


def items(found: Found, wanted: set[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Title and description of the `wanted` items, and what was met on the way."""
    if found.source == "raw":
        fields = {name: STANFORD.fields[name] for name in FIELDS}
        return read_catalogue(found.path, STANFORD.item_key, fields, wanted)
    return read_item_csv(found.path, FIELDS, wanted)


def _there(folder: Path, kind: str, source: str, otherwise: str) -> str:
    found = find(folder, kind, source)
    return otherwise if found is None else found.source


def _other(source: str) -> str:
    return "raw" if source == "bytedance" else "bytedance"


def _missing(folder: Path, kind: str, source: str, download: bool) -> str:
    ours = {
        "interactions": "amazon_books.csv (item_id,user_id,timestamp)",
        "items": "amazon_books.csv or amazon_books.csv.1 (item_id,description,title)",
    }
    wanted = {"raw": RAW[kind], "bytedance": ours[kind]}
    names = [wanted[source]] if source in wanted else [RAW[kind], ours[kind]]
    present = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix != ".py")
    advice = "" if download else "; without --no_download the script fetches it"
    return (
        f"{folder} has no {' and no '.join(names)}; it holds: {', '.join(present[:8]) or 'nothing'}{advice}. "
        "Put it there, or name its folder with --data_dir"
    )
