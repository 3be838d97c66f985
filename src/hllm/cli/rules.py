"""Options that `recommend` and `similar` share: which items may come, as users type them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hllm.errors import ConfigError, DataError

TABLES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")

Candidates = Annotated[str, typer.Option(help="interacted, or catalogue: items without events too.")]
Exclude = Annotated[
    list[str], typer.Option(help="Not these items: ID,ID, or a file of ids. Any number of times.")
]
ExcludeItems = Annotated[Path | None, typer.Option(help="Items nobody gets: a file as above.")]
Only = Annotated[
    list[str],
    typer.Option(help="COLUMN=VALUE: only items with this value or label, as genres=Comedy. Each must fit."),
]
OnlyItems = Annotated[
    Path | None, typer.Option(help="Items to choose from: a text file of ids, or a table with item_id.")
]
At = Annotated[
    str | None,
    typer.Option(help="Moment of the request, a date or now; by default that of the data's last event."),
]
Diversify = Annotated[
    str | None, typer.Option(help="COLUMN:N, at most N items of a value or label: brand:2.")
]
Diversity = Annotated[
    float | None, typer.Option(min=0, max=1, help="Weight of unlikeness (maximal marginal relevance): 0.3.")
]
With = Annotated[str | None, typer.Option("--with", help="Columns of the items to add, as title,genres.")]


def excluded_ids(exclude: Sequence[str], exclude_items: Path | None) -> list[Any]:
    """Item ids of --exclude and --exclude-items."""
    found = [part for text in exclude for part in _ids_or_file(text)]
    return found if exclude_items is None else [*found, *read_ids(exclude_items, "item_id")]


def only_ids(path: Path | None) -> list[Any] | None:
    """Item ids of --only-items."""
    return None if path is None else read_ids(path, "item_id")


def split_list(text: str) -> list[str]:
    """The parts of `A,B`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def pairs(texts: Sequence[str]) -> dict[str, list[str]] | None:
    """`COLUMN=VALUE` of --only; values of one column are alternatives."""
    found: dict[str, list[str]] = {}
    for text in texts:
        column, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--only {text!r} is not COLUMN=VALUE, for example --only genres=Comedy")
        found.setdefault(column.strip(), []).append(value)
    return found or None


def _ids_or_file(text: str) -> list[Any]:
    """Item ids of --exclude: those of a file, where there is one of that name, or else the text's own."""
    from hllm.data.reading.tablefiles import has_ending

    path = Path(text)
    try:
        is_file = path.exists() or has_ending(path, (*TABLES, ".txt"))
    except (OSError, ValueError):  # too long for a name
        is_file = False
    return read_ids(path, "item_id") if is_file else split_list(text)


def read_ids(path: Path, column: str) -> list[Any]:
    """Ids of a file: a table's `column`, or one id a line. DataError for a file without any."""
    from hllm.data.reading.tablefiles import has_ending, read_table_file
    from hllm.data.tables.columns import canonical_ids

    if has_ending(path, TABLES):
        frame = read_table_file(path)
        if column not in frame.columns:
            raise DataError(f"{path} has no column {column} (its columns: {', '.join(frame.columns)})")
        ids = canonical_ids(frame[column], str(path)).unique(maintain_order=True).to_list()
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except FileNotFoundError as err:
            raise DataError(f"{path} not found") from err
        except (OSError, ValueError) as err:
            raise DataError(f"{path} is not a readable text file of ids: {err}") from err
        ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not ids:
        raise DataError(
            f"{path} holds no {column.replace('_', ' ')}; one a line, or a table with the column {column}"
        )
    return ids
