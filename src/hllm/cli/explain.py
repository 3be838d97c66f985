"""`hllm explain RUN`: why an item is recommended to a user."""

from __future__ import annotations

import json as plain
from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console


def explain(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
    item: Annotated[str, typer.Option(help="The item to explain.")],
    user: Annotated[str | None, typer.Option(help="A known user.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Item ids of somebody unknown, oldest first: ID,ID.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Events that are left out in turn, the last ones.")] = 100,
    shown: Annotated[int, typer.Option(min=1, help="Reasons to show.")] = 5,
    json: Annotated[bool, typer.Option("--json", help="All reasons, as JSON.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Say what each event of the history adds to the score of --item, by leaving it out."""
    from hllm.runs.folder import read_record

    read_record(run)  # a mistake is answered before torch is there
    from hllm.pipeline import Recommender
    from hllm.recommend.explain import in_words

    recommender = Recommender.from_pretrained(run, device)
    events = None if history is None else [part.strip() for part in history.split(",") if part.strip()]
    found = recommender.explain(user, item, history=events, most=most)
    if json:
        console.result(plain.dumps({"user_id": user, **found.as_dict()}, ensure_ascii=False))
        return
    assert recommender.dataset is not None
    who = "this history" if user is None else f"user {user}"
    for line in in_words(found, who, shown, recommender.dataset.meta["time_unit"]):
        console.result(line)
