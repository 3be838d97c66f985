"""Data sets of two CSV files that carry the same name: interactions, and texts of the items.

ByteDance and PixelRec publish `dataset/NAME.csv` and `information/NAME.csv`. Downloaded into one
folder, the second becomes `NAME.csv.1`, or somebody renames one. So the files are told apart by
what they hold: the columns of their first lines.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.data.reading.catalogue import Field, read_item_csv
from hllm.data.reading.event_files import COLUMN_NAMES, first_fields, read_events
from hllm.data.reading.files import files_named, need_folder
from hllm.data.tables.schema import ITEM_ID, TIMESTAMP, USER_ID, Tables, guess_time_unit, to_tables
from hllm.data.tables.values import clean_id
from hllm.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    import polars as pl

CATALOGUES = ("used", "all")


def read_pair(
    folder: Path | None, names: Sequence[str], fields: Mapping[str, Field], *, catalogue: str, advice: str
) -> Tables:
    """Tables of the two files among `names`, in `folder` or the folders inside it."""
    check_catalogue(catalogue)
    interactions, information = find_pair(need_folder(folder), names, advice)
    events = read_events(interactions)
    items, counts = read_item_csv(information, fields, wanted_items(events, catalogue))
    return finish(events, items, list(fields), counts, unit="s")


def find_pair(folder: Path, names: Sequence[str], advice: str) -> tuple[Path, Path]:
    """The interactions file and the item file; DataError says which of them is missing."""
    present = _present(folder, names)
    kinds = {path: _kind(path) for path in present}
    interactions = [p for p, kind in kinds.items() if kind == "interactions"]
    information = [p for p, kind in kinds.items() if kind == "items"]
    if interactions and information:
        return interactions[0], information[0]
    shown = "; ".join(
        f"{path.relative_to(folder)} with the columns {', '.join(first_fields(path)[:6])}" for path in present
    )
    missing = (
        "item texts (item_id, title, ...)" if interactions else "interactions (item_id, user_id, timestamp)"
    )
    raise DataError(
        f"{folder} has no {names[0]} with {missing}; found: {shown or 'nothing of that name'}. {advice}"
    )


def find_csv(folder: Path, names: Sequence[str], kind: str) -> Path | None:
    """The first file of `kind`, "interactions" or "items", among `names` in `folder` or the folders inside it."""
    return next((path for path in _present(folder, names) if _kind(path) == kind), None)


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files of these names, those in folders that are called after their content before the rest."""
    found = dict.fromkeys(files_named(folder, *names, endings=("", ".gz", ".1")))
    return sorted(found, key=lambda path: path.parent == folder)


def _kind(path: Path) -> str:
    names = {COLUMN_NAMES.get(field.lower(), field.lower()) for field in first_fields(path)}
    if {USER_ID, ITEM_ID, TIMESTAMP} <= names:
        return "interactions"
    return "items" if ITEM_ID in names and USER_ID not in names else ""


# ------------------------------------------------------------- shared with other readers


def check_catalogue(value: str) -> None:
    """ConfigError unless `value` is "used" (items with an interaction) or "all"."""
    if value not in CATALOGUES:
        raise ConfigError(unknown("catalogue", value, CATALOGUES))


def check_options(*, catalogue: str = "used", **others: Any) -> None:
    """ConfigError for values of a reader's options that cannot be, before anything is read."""
    check_catalogue(catalogue)


def wanted_items(events: pl.DataFrame, catalogue: str) -> Container[str] | None:
    """Identifiers whose records are to be read; None for all."""
    return None if catalogue == "all" else {clean_id(item) for item in events[ITEM_ID].unique()}


def finish(
    events: pl.DataFrame, items: pl.DataFrame, text_fields: list[str], counts: dict[str, int], unit: str
) -> Tables:
    """Canonical tables; times that can't be in the published `unit` are said to be in another.

    Identifiers stay strings: they are codes, and that a part of them has only digits must not
    make it a table of another type.
    """
    notes: list[str] = []
    guess = guess_time_unit(events[TIMESTAMP], notes)
    fits = guess in ("index", unit)
    tables = to_tables(
        events, items, text_fields=text_fields, time_unit=unit if fits else guess, cleaned=True
    )
    tables.counts = counts | tables.counts
    tables.notes = [*tables.notes, *([] if fits else notes)]
    return tables
