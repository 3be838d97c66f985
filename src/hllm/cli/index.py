"""`hllm index RUN`: an approximate index of the items, and what it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console
from hllm.errors import ConfigError


def index(
    run: Annotated[Path, typer.Argument(help="A run folder, as `hllm train` writes it.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write, for faiss.read_index; ids are tokens.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Recall and speed against exact search.")] = False,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Items of a list that is compared.")] = 10,
    effort: Annotated[int, typer.Option(min=1, help="Candidates that a search looks at.")] = 128,
) -> None:
    """Build an approximate index (HNSW) of the items. Recommending itself stays exact."""
    if out is None and not check:
        raise ConfigError("say what to do: --check, or --out FILE")
    from hllm.pipeline import Recommender
    from hllm.recommend.index import build_index, check_index, write_index

    session = Recommender.from_pretrained(run, "cpu").session()
    made = build_index(session, effort)
    if check:
        found = check_index(session, made, k)
        console.result(
            f"recall@{found.k} {found.recall:.4f} of {found.users:,} users over {made.ntotal:,} items; "
            f"{found.approximate:,.0f} queries/s against {found.exact:,.0f} exact, "
            f"{found.approximate / found.exact:.1f} times"
        )
    if out is not None:
        write_index(out, made)
        console.result(f"index of {made.ntotal:,} items in {out}")
