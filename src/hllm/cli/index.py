"""`hllm index RUN`: an approximate index of the items, and what it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console


def index(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
    check: Annotated[bool, typer.Option("--check", help="Recall and speed against exact search.")] = False,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Items of a list that is compared.")] = 10,
    effort: Annotated[
        int, typer.Option(min=1, help="With --check: candidates that a search looks at.")
    ] = 768,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make it anew.")] = False,
) -> None:
    """Make an approximate index (HNSW) of the items, once, and keep it in the run.

    `hllm recommend --approximate` uses it, and any request among more than a million items; else search is exact.
    """
    from hllm.artifacts import locked
    from hllm.runs.folder import read_record

    record = read_record(run)  # a mistake is answered before torch is there
    from hllm.pipeline import Recommender
    from hllm.progress import progress
    from hllm.recommend import index as made

    weights = made.weights_of(record)
    session = Recommender.from_pretrained(run, "cpu").session()
    with locked(run / made.FOLDER):
        found = None if overwrite else made.open_index(session, run, weights, effort)
        if found is None:
            with progress("index", len(made.candidate_tokens(session)), "items") as bar:
                found = made.build_index(session, effort, bar.advance)
            made.save_index(found, run, weights)
            console.result(f"index of {len(found):,} items in {run / made.FOLDER}")
        else:
            console.result(f"{run / made.FOLDER} holds the index of {len(found):,} items already")
    if check:
        recall = made.check_index(session, found, k)
        console.result(
            f"recall@{recall.k} {recall.recall:.4f} of {recall.users:,} users over {len(found):,} items; "
            f"{recall.approximate:,.0f} queries/s against {recall.exact:,.0f} exact, "
            f"{recall.approximate / recall.exact:.2g} times"
        )
        if recall.approximate < recall.exact:
            console.note(
                "exact search is the faster one here, and what recommending uses up to a million items"
            )
