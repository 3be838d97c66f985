"""`hllm similar RUN`: items like an item, or like a free text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console, rules


def similar(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
    item: Annotated[str | None, typer.Option(help="Items like this one.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Items like this text, through the run's item LLM.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Items.")] = 10,
    candidates: rules.Candidates = "interacted",
    exclude: rules.Exclude = [],  # noqa: B006
    only: rules.Only = [],  # noqa: B006
    with_: rules.With = None,
    only_items: rules.OnlyItems = None,
    exclude_items: rules.ExcludeItems = None,
    at: rules.At = None,
    diversify: rules.Diversify = None,
    diversity: rules.Diversity = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON lines, with item_id, score, rank.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """The items most like --item or --text, by the cosine of item vectors."""
    from hllm.runs.folder import read_record

    read_record(run)  # a mistake is answered before torch is there
    from hllm.pipeline import Recommender
    from hllm.recommend.queries import title_of

    recommender = Recommender.from_pretrained(run, device)
    frame = recommender.similar(
        item,
        text=text,
        k=k,
        exclude=rules.excluded_ids(exclude, exclude_items),
        candidates=candidates,
        only=rules.pairs(only),
        columns=rules.split_list(with_ or ""),
        only_items=rules.only_ids(only_items),
        at=at,
        diversify=diversify,
        diversity=diversity,
    )
    if json:
        console.result(frame.write_ndjson().rstrip("\n"))
        return
    assert recommender.dataset is not None
    name, more = title_of(recommender.dataset), frame.columns[3:]
    rows = [
        [str(rank), str(i), *(["" if v is None else str(v) for v in values] if more else [name(i)]), score]
        for i, score, rank, *values in frame.iter_rows()
    ]
    columns = ["rank", "item_id", *(more or ["title"]), "cosine"]
    console.table(None, columns, rows, text_columns=len(columns) - 1)
