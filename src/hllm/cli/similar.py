"""`hllm similar RUN`: items like an item, or like a free text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console


def similar(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
    item: Annotated[str | None, typer.Option(help="Items like this one.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Items like this text, through the run's item LLM.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Items.")] = 10,
    candidates: Annotated[
        str, typer.Option(help="interacted, or catalogue: items without events too.")
    ] = "interacted",
    diversify: Annotated[str | None, typer.Option(help="COLUMN:N, at most N items of a value.")] = None,
    diversity: Annotated[float | None, typer.Option(min=0, max=1, help="Weight of unlikeness: 0.3.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON lines, with item_id, score, rank.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """The items most like --item or --text, by the cosine of item vectors."""
    from hllm.pipeline import Recommender
    from hllm.recommend.queries import title_of

    recommender = Recommender.from_pretrained(run, device)
    frame = recommender.similar(
        item, text=text, k=k, candidates=candidates, diversify=diversify, diversity=diversity
    )
    if json:
        console.result(frame.write_ndjson().rstrip("\n"))
        return
    assert recommender.dataset is not None
    name = title_of(recommender.dataset)
    rows = [[str(rank), str(i), name(i), score] for i, score, rank in frame.iter_rows()]
    console.table(None, ["rank", "item_id", "title", "cosine"], rows, text_columns=3)
