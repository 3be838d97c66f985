"""`hllm recommend RUN`: the best items for known users, for raw histories, or for a split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hllm.cli import console
from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hllm.pipeline import Recommender

SHOWN_ROWS = 100
TABLES = (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")


def recommend(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
    users: Annotated[
        Path | None, typer.Option(help="Users: a text file, one id a line, or a table with a user_id column.")
    ] = None,
    user: Annotated[list[str], typer.Option(help="One user id, any number of times.")] = [],  # noqa: B006
    history: Annotated[
        list[str],
        typer.Option(help="Item ids of somebody unknown, oldest first: ID,ID. Any number of times."),
    ] = [],  # noqa: B006
    times: Annotated[
        list[str],
        typer.Option(help="Times of the events of a --history, in the dataset's unit or as dates: T,T."),
    ] = [],  # noqa: B006
    titles: Annotated[list[str], typer.Option(help="The same by title, one a --titles.")] = [],  # noqa: B006
    split: Annotated[
        str | None, typer.Option(help="test or validation: users before their held-out item.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Items a user.")] = 10,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Items of the history too.")] = False,
    candidates: Annotated[
        str, typer.Option(help="interacted, or catalogue: items without events too.")
    ] = "interacted",
    unknown: Annotated[
        str,
        typer.Option(help="Users unknown or without history: skip (and count), error, or popular items."),
    ] = "skip",
    exclude: Annotated[
        list[str], typer.Option(help="Not these items: ID,ID, or a file of ids. Any number of times.")
    ] = [],  # noqa: B006
    only: Annotated[
        list[str],
        typer.Option(
            help="COLUMN=VALUE: only items with this value or label, as genres=Comedy. Each must fit."
        ),
    ] = [],  # noqa: B006
    with_: Annotated[
        str | None, typer.Option("--with", help="Columns of the items to add, as title,genres.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .parquet, .csv, .tsv, .json or .jsonl.")
    ] = None,
    spreadsheet_safe: Annotated[
        bool, typer.Option("--spreadsheet-safe", help="In CSV, put ' before text that begins like a formula.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Recommend items: all known users unless --users, --user, --history, --titles or --split says who."""
    from hllm.hardware import check_device
    from hllm.recommend.frames import check_output, formulas, write_frame
    from hllm.runs.folder import read_record

    if out is not None:
        check_output(out)
    check_device(device)
    ids: list[Any] | None = [*(_read_ids(users, "user_id") if users else []), *user] or None
    chosen, columns = _pairs(only), _parts(with_ or "")
    excluded = [part for text in exclude for part in _ids_or_file(text)]
    read_record(run)  # the last that can be told without torch
    from hllm.pipeline import Recommender

    recommender = Recommender.from_pretrained(run, device)
    frame, notes = recommender.recommend_noted(
        ids,
        [_parts(text) for text in history] or None,
        [_moments(text) for text in times] or None,
        [titles] if titles else None,
        split,
        k,
        keep_seen,
        excluded,
        candidates,
        unknown,
        chosen,
        columns,
    )
    if notes and not len(frame):
        raise DataError(f"nobody is left to recommend for ({'; '.join(notes)})")
    for line in notes:
        console.note(line)
    if out is not None:
        write_frame(out, frame, spreadsheet_safe)
        if not spreadsheet_safe and out.suffix in (".csv", ".tsv") and (n := formulas(frame)):
            console.note(f"{n:,} texts begin as formulas of a spreadsheet do; see --spreadsheet-safe")
        console.result(f"{len(frame):,} recommendations for {frame['user_id'].n_unique():,} users in {out}")
        return
    _show(recommender, frame)


def _moments(text: str) -> list[Any]:
    """Times as numbers, or as the dates they are."""
    parts = _parts(text)
    return (
        [int(part) for part in parts] if all(p.removeprefix("-").isdecimal() for p in parts) else list(parts)
    )


def _show(recommender: Recommender, frame: Any) -> None:
    """The first rows, with the columns that the frame has beside its own, else with titles."""
    from hllm.report.examples import title_of

    data = recommender.dataset
    assert data is not None
    name, columns, rows = title_of(data), frame.columns[4:], []
    for user, item, score, rank, *more in frame.head(SHOWN_ROWS).iter_rows():
        shown = ["" if value is None else str(value) for value in more] if columns else [name(item)]
        rows.append([str(user), str(rank), str(item), *shown, score])
    names = ["user_id", "rank", "item_id", *(columns or ["title"]), "score"]
    console.table(None, names, rows, text_columns=len(names) - 1)
    if len(frame) > SHOWN_ROWS:
        console.note(f"{SHOWN_ROWS} of {len(frame):,} rows shown; write all with --out recs.parquet")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _pairs(texts: Sequence[str]) -> dict[str, list[str]] | None:
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
    return _read_ids(path, "item_id") if is_file else _parts(text)


def _read_ids(path: Path, column: str) -> list[Any]:
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
            f"{path} holds no {column.replace('_', ' ')}; one a line, or a table with a {column} column"
        )
    return ids
