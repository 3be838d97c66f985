"""`hllm update RUN`: new events, users and items, without training or with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hllm.cli import console
from hllm.errors import ArtifactError, DataError

if TYPE_CHECKING:
    import polars as pl


def update(
    run: Annotated[Path, typer.Argument(help="The run to bring up to date; it stays as it is.")],
    interactions: Annotated[Path, typer.Option(help="Table of new events: user_id, item_id, timestamp.")],
    out: Annotated[Path, typer.Option(help="Folder of the updated run.")],
    items: Annotated[Path | None, typer.Option(help="Table of items; known ones are passed over.")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train on, from the run's weights, on old and new events.")
    ] = False,
    user_col: Annotated[str | None, typer.Option(help="The column of user ids, if not user_id.")] = None,
    item_col: Annotated[str | None, typer.Option(help="The column of item ids, in both tables.")] = None,
    time_col: Annotated[str | None, typer.Option(help="The column of times, if not timestamp.")] = None,
    set_: Annotated[
        list[str], typer.Option("--set", help="With --train: epochs=2, learning_rate=1e-4, ...")
    ] = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run in --out.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Let histories grow, take new users and items, and with --train learn from them.

    The same command twice does its work once. An interrupted one leaves no run in --out, and is to be given again.
    """
    from hllm.artifacts import digest_file, locked
    from hllm.config import parse_assignments
    from hllm.runs.folder import read_record, run_state

    if out.resolve() == run.resolve():
        raise ArtifactError(f"--out {out} is the run itself, which stays as it is; choose another folder")
    parent, settings = read_record(run), parse_assignments(set_)
    names = {user_col: "user_id", item_col: "item_id", time_col: "timestamp"}
    events = _table(interactions, names)
    more = None if items is None else _table(items, {item_col: "item_id"})
    source: dict[str, Any] = {
        "interactions": digest_file(interactions),
        "items_file": None if items is None else digest_file(items),
        "settings": settings,
    }
    from hllm.pipeline import Recommender

    with locked(out):
        if run_state(out) == "finished" and not overwrite:
            last = (read_record(out).get("lineage") or [{}])[-1]
            wanted = {"parent": parent["created"], "trained": train, **source}
            if all(last.get(key) == value for key, value in wanted.items()):
                console.result(f"{out} holds this update already ({last['events']:,} new events)")
                return
            raise ArtifactError(f"{out} holds another run; choose another --out, or --overwrite")
        recommender = Recommender.from_pretrained(run, device)
        counts = recommender.update(
            events, more, train=train, settings=settings, device=device, source=source
        )
        recommender.save_pretrained(out)
    if counts["known_events"]:
        console.note(f"{counts['known_events']:,} events were known already")
    if n := counts["events_of_unknown_items"]:
        console.note(
            f"{n:,} events left out: their items are not in the catalogue; name them with --items FILE"
        )
    how = "trained on" if train else "without training"
    console.result(
        f"{counts['events']:,} new events, {counts['users']:,} new users, {counts['items']:,} new items, {how}; "
        f"run in {out}"
    )


def _table(path: Path, names: dict[str | None, str]) -> pl.DataFrame:
    """The table, columns that have other names called as ours."""
    from hllm.data.reading.tablefiles import read_table_file

    if not path.exists():
        raise DataError(f"{path} not found")
    frame = read_table_file(path)
    given = {theirs: ours for theirs, ours in names.items() if theirs is not None and theirs != ours}
    for theirs, ours in given.items():
        if theirs not in frame.columns:
            raise DataError(f"{path} has no column {theirs!r} (its columns: {', '.join(frame.columns)})")
        if ours in frame.columns:
            raise DataError(f"{path} has both {theirs!r} and {ours!r}; drop or rename one of them")
    return frame.rename(given)
