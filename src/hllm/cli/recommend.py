"""`hllm recommend RUN`: the best items for known users, for raw histories, or for a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hllm.cli import console, rules
from hllm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import polars as pl

    from hllm.pipeline import Recommender

SHOWN_ROWS, SHOWN_NOTES = 100, 3


def recommend(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
    users: Annotated[
        Path | None,
        typer.Option(
            help="Users: a text file, one id a line, or a table with a user_id column; in a column history there are "
            "item ids of those who are unknown."
        ),
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
    candidates: rules.Candidates = "interacted",
    unknown: Annotated[
        str,
        typer.Option(help="Users unknown or without history: skip (and count), error, or popular items."),
    ] = "skip",
    exclude: rules.Exclude = [],  # noqa: B006
    only: rules.Only = [],  # noqa: B006
    with_: rules.With = None,
    only_items: rules.OnlyItems = None,
    exclude_items: rules.ExcludeItems = None,
    exclude_seen_since: Annotated[
        str | None,
        typer.Option(help="30d: items seen longer ago than this may come back (s, min, h, d, w)."),
    ] = None,
    per_user: Annotated[
        Path | None, typer.Option(help="Table user_id,item_id,allow (true, false): lists for single users.")
    ] = None,
    at: rules.At = None,
    diversify: rules.Diversify = None,
    diversity: rules.Diversity = None,
    text: Annotated[
        str | None,
        typer.Option(help="Free text to search for, together with the history (needs an item LLM)."),
    ] = None,
    text_weight: Annotated[
        float | None, typer.Option(min=0, max=1, help="Weight of --text against the history; 0.5 by default.")
    ] = None,
    approximate: Annotated[
        bool | None,
        typer.Option(
            "--approximate/--exact",
            help="Search by the run's index (`hllm index RUN`); by default among more than a million items alone.",
        ),
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
    engine: Annotated[str, typer.Option(help="local, or ray: a cluster, where --out is a folder.")] = "local",
    device: Annotated[
        str,
        typer.Option(help="auto, cpu, cuda or cuda:N; several as cuda:0,cuda:1, where --out is a folder."),
    ] = "auto",
) -> None:
    """Recommend items: all known users unless --users, --user, --history, --titles or --split says who.

    Known users, histories and titles may be mixed; a history without a name is then called -1, -2, ...
    """
    from hllm.cli.whom import read_whom
    from hllm.data.reading.tablefiles import read_table_file
    from hllm.engine import check_engine
    from hllm.hardware import check_device
    from hllm.recommend.frames import check_output
    from hllm.runs.folder import read_record

    in_parts = out is not None and (out.is_dir() or not out.suffix)
    if out is not None and not in_parts:
        check_output(out)
    if in_parts and (titles or split):
        raise ConfigError(
            f"--out {out} is a folder, which is for users and histories; --titles and --split go to a file"
        )
    devices = [check_device(name) for name in rules.split_list(device) or [""]]
    check_engine(engine, devices)
    if not in_parts and (len(devices) > 1 or engine != "local"):
        raise ConfigError("several devices, and --engine ray, need a folder: --out DIR")
    whom = read_whom(users, user, history, times, titles)
    options: dict[str, Any] = {
        "k": k,
        "keep_seen": keep_seen,
        "exclude": rules.excluded_ids(exclude, exclude_items),
        "candidates": candidates,
        "unknown": unknown,
        "only": rules.pairs(only),
        "columns": rules.split_list(with_ or ""),
    }
    chosen: dict[str, Any] = {
        "only_items": rules.only_ids(only_items),
        "exclude_seen_since": exclude_seen_since,
        "per_user": None if per_user is None else read_table_file(per_user),
        "at": at,
        "diversify": diversify,
        "diversity": diversity,
        "text": text,
        "text_weight": text_weight,
        "approximate": approximate,
    }
    read_record(run)  # the last that can be told without torch
    if in_parts:
        from hllm.batch import recommend_parts

        assert out is not None
        files = [path for path in (per_user, only_items) if path is not None]
        rows, n, notes = recommend_parts(
            run, out, whom, options, chosen,
            part_users=part_users, files=files, engine=engine, devices=devices,
        )  # fmt: skip
        for line in notes[:SHOWN_NOTES]:
            console.note(line)
        if len(notes) > SHOWN_NOTES:
            console.note(f"and so in {len(notes) - SHOWN_NOTES} more parts")
        console.result(f"{rows:,} recommendations for up to {n:,} users in {out}")
        return
    from dataclasses import asdict, replace

    from hllm.pipeline import Recommender

    recommender = Recommender.from_pretrained(run, device)
    frame, notes = recommender.recommend_noted(**asdict(replace(whom, split=split)), **options, rules=chosen)
    if notes and not len(frame):
        raise DataError(f"nobody is left to recommend for ({'; '.join(notes)})")
    for line in notes:
        console.note(line)
    if out is not None:
        _write(out, frame, spreadsheet_safe)
        return
    _show(recommender, frame)


def _write(out: Path, frame: pl.DataFrame, spreadsheet_safe: bool) -> None:
    from hllm.recommend.frames import formulas, write_frame

    write_frame(out, frame, spreadsheet_safe)
    if not spreadsheet_safe and out.suffix in (".csv", ".tsv") and (n := formulas(frame)):
        console.note(f"{n:,} texts begin as formulas of a spreadsheet do; see --spreadsheet-safe")
    console.result(f"{len(frame):,} recommendations for {frame['user_id'].n_unique():,} users in {out}")


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
