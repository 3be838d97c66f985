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

SHOWN_ROWS, SHOWN_NOTES = 100, 3
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
    only_items: Annotated[
        Path | None, typer.Option(help="Items to choose from: a text file of ids, or a table with item_id.")
    ] = None,
    exclude_items: Annotated[Path | None, typer.Option(help="Items nobody gets: a file as above.")] = None,
    exclude_seen_since: Annotated[
        str | None,
        typer.Option(help="30d: items seen longer ago than this may come back (s, min, h, d, w)."),
    ] = None,
    per_user: Annotated[
        Path | None, typer.Option(help="Table user_id,item_id,allow (true, false): lists for single users.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Moment of the request, a date or now; by default that of the data's last event."),
    ] = None,
    diversify: Annotated[
        str | None, typer.Option(help="COLUMN:N, at most N items of a value: brand:2.")
    ] = None,
    diversity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Weight of unlikeness (maximal marginal relevance): 0.3."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Free text to search for, together with the history (needs an item LLM)."),
    ] = None,
    text_weight: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of --text against the history; 0.5 by default.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .parquet, .csv, .tsv, .json or .jsonl; or a folder, for Parquet in parts."
        ),
    ] = None,
    part_users: Annotated[int, typer.Option(min=1, help="Users a part, where --out is a folder.")] = 10_000,
    spreadsheet_safe: Annotated[
        bool, typer.Option("--spreadsheet-safe", help="In CSV, put ' before text that begins like a formula.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Recommend items: all known users unless --users, --user, --history, --titles or --split says who."""
    from hllm.data.reading.tablefiles import read_table_file
    from hllm.hardware import check_device
    from hllm.recommend.frames import check_output, formulas, write_frame
    from hllm.runs.folder import read_record

    in_parts = out is not None and (out.is_dir() or not out.suffix)
    if out is not None and not in_parts:
        check_output(out)
    if in_parts and (history or titles or split):
        raise ConfigError(
            f"--out {out} is a folder, which is for users; --history, --titles and --split go to a file"
        )
    check_device(device)
    ids: list[Any] | None = [*(_read_ids(users, "user_id") if users else []), *user] or None
    chosen, columns = _pairs(only), _parts(with_ or "")
    excluded = [part for text in exclude for part in _ids_or_file(text)]
    if exclude_items is not None:
        excluded += _read_ids(exclude_items, "item_id")
    rules = {
        "only_items": None if only_items is None else _read_ids(only_items, "item_id"),
        "exclude_seen_since": exclude_seen_since,
        "per_user": None if per_user is None else read_table_file(per_user),
        "at": at,
        "diversify": diversify,
        "diversity": diversity,
        "text": text,
        "text_weight": text_weight,
    }
    read_record(run)  # the last that can be told without torch
    from hllm.pipeline import Recommender

    recommender = Recommender.from_pretrained(run, device)
    options = {
        "k": k,
        "keep_seen": keep_seen,
        "exclude": excluded,
        "candidates": candidates,
        "unknown": unknown,
        "only": chosen,
        "columns": columns,
    }
    if in_parts:
        assert out is not None
        files = [path for path in (per_user, only_items) if path is not None]
        _write_parts(recommender, out, ids, options, rules, part_users, files)
        return
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
        rules,
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


def _write_parts(
    recommender: Recommender,
    out: Path,
    ids: list[Any] | None,
    options: dict[str, Any],
    rules: dict[str, Any],
    part_users: int,
    files: Sequence[Path],
) -> None:
    """Parquet in parts; goes on with an interrupted call."""
    import polars as pl

    from hllm.artifacts import digest_file
    from hllm.progress import progress
    from hllm.recommend.parts import write_parts

    data = recommender.dataset
    assert data is not None
    users = list(data.user_ids) if ids is None else ids
    # Somebody unknown may have an id of another type, and all parts have the same.
    as_text = ids is not None and options["unknown"] == "popular"

    nobody: tuple[None, None, None, None] = (None, None, None, None)  # no histories, times, titles, split

    def some(part: Sequence[Any]) -> tuple[pl.DataFrame, list[str]]:
        frame, notes = recommender.recommend_noted(part, *nobody, **options, rules=rules)
        kind = pl.String if as_text else data.users["user_id"].dtype
        return frame.with_columns(pl.col("user_id").cast(kind)), notes

    plain = {key: value for key, value in rules.items() if key not in ("per_user", "only_items")}
    asked = {
        "run": recommender.record.created,
        "fingerprint": data.fingerprint,
        **options,
        **plain,
        "files": [digest_file(path) for path in files],
    }
    with progress("recommend", len(users), "users") as bar:
        rows, notes = write_parts(out, users, some, asked, part_users, bar.advance)
    for line in notes[:SHOWN_NOTES]:
        console.note(line)
    if len(notes) > SHOWN_NOTES:
        console.note(f"and so in {len(notes) - SHOWN_NOTES} more parts")
    console.result(f"{rows:,} recommendations for up to {len(users):,} users in {out}")


def _moments(text: str) -> list[Any]:
    """Times as numbers, or as the dates they are."""
    parts = _parts(text)
    return (
        [int(part) for part in parts] if all(p.removeprefix("-").isdecimal() for p in parts) else list(parts)
    )


def _show(recommender: Recommender, frame: Any) -> None:
    """The first rows, with the columns that the frame has beside its own, else with titles."""
    from hllm.recommend.queries import title_of

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
