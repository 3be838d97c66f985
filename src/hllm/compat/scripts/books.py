"""Amazon Books' raw files as people have them: Stanford's or ByteDance's, under any of their names.

Stanford's   ratings_Books.csv, meta_Books.json.gz
ByteDance's  amazon_books.csv twice: in dataset/ and information/, or in one folder, where wget
             calls the second amazon_books.csv.1; told apart by their columns
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hllm.compat.scripts.entry import say
from hllm.compat.scripts.raw import need_raw
from hllm.data.reading.catalogue import Field, read_catalogue, read_item_csv
from hllm.data.reading.event_files import COLUMN_NAMES, first_fields, read_events
from hllm.data.reading.files import optional_file
from hllm.data.sources.amazon import DESCRIPTION, USER_FIRST, title_text
from hllm.data.sources.bytedance import NAMES
from hllm.data.tables.schema import ITEM_ID, TIMESTAMP, USER_ID
from hllm.errors import DataError

if TYPE_CHECKING:
    import polars as pl

SOURCES = ("auto", "raw", "bytedance")
RAW = {"interactions": "ratings_Books.csv", "items": "meta_Books.json"}
FETCHED = {"raw": "amazon-books", "bytedance": "bytedance-books"}
FIELDS = {"title": Field(("title",), title_text), "description": DESCRIPTION}


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
    if source in ("auto", "bytedance"):
        for path in _csv_files(folder):
            if kind_of(path) == kind:
                return Found("bytedance", path)
    if source in ("auto", "raw"):
        ratings = optional_file(folder, RAW[kind])
        if ratings is not None:
            return Found("raw", ratings)
    return None


def kind_of(path: Path) -> str:
    """ "interactions", "items" or "", by the columns that the first line names."""
    names = {COLUMN_NAMES.get(field.lower(), field.lower()) for field in first_fields(path)}
    if {USER_ID, ITEM_ID, TIMESTAMP} <= names:
        return "interactions"
    return "items" if ITEM_ID in names and names & {"title", "description"} else ""


def interactions(found: Found) -> pl.DataFrame:
    """The interactions of a file, in its order."""
    return read_events(found.path, USER_FIRST if found.source == "raw" else None)


def items(found: Found, wanted: set[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Title and description of the `wanted` items, and what was met on the way."""
    if found.source == "raw":
        return read_catalogue(found.path, "asin", FIELDS, wanted)
    return read_item_csv(found.path, FIELDS, wanted)


def _csv_files(folder: Path) -> list[Path]:
    places = (folder, folder / "dataset", folder / "information")
    names = [f"{name}{ending}" for name in NAMES for ending in ("", ".1", ".gz")]
    return [place / name for place in places for name in names if (place / name).is_file()]


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
