"""`hllm items`: are a dataset's item embeddings fit to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hllm.cli import console

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings


def items(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder with embeddings, made by `hllm embed`.")],
    check: Annotated[
        bool, typer.Option("--check", help="Check the embeddings (what is done anyway).")
    ] = True,
    item_llm: Annotated[
        str | None,
        typer.Option(
            help="Whose embeddings: a model's name or a store's key; needed where there are several."
        ),
    ] = None,
    pooling: Annotated[str, typer.Option(help="Their pooling, where ITEM_LLM is a name.")] = "mean",
    samples: Annotated[int, typer.Option(min=0, help="Items whose nearest neighbours are shown.")] = 5,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours of each.")] = 5,
) -> None:
    """Health of the item embeddings: how alike they are, directions in use, duplicates, neighbours, what to do."""
    from hllm.data.dataset import Dataset
    from hllm.items.health import check as measure

    data = Dataset.load(dataset)
    embeddings = _find(data, item_llm, pooling)
    found = measure(embeddings)
    there = found.items - found.without_text
    console.result(
        f"{embeddings.spec['model']}, pooling {embeddings.spec['pooling']}, store {embeddings.spec['key']}"
    )
    console.result(
        f"{found.items:,} items, {found.without_text:,} without text, {found.truncated:,} cut, {found.identical:,} "
        f"with a vector that others have too, {found.near_duplicates:.1%} nearly like another"
    )
    console.result(
        f"mean cosine {found.mean_cosine:.3f}, after centring {found.centred_cosine:.3f}; effective rank "
        f"{found.effective_rank:.0f} of {min(found.dim, there)}"
    )
    _neighbours(data, embeddings, samples, k)
    for line in found.advice():
        console.result(f"advice: {line}")


def _find(data: Dataset, item_llm: str | None, pooling: str) -> ItemEmbeddings:
    """The embeddings asked for, or the only ones; AmbiguousError where there are several."""
    from hllm.errors import AmbiguousError
    from hllm.items.config import check_pooling
    from hllm.items.embed import load_embeddings
    from hllm.items.resolve import MOST
    from hllm.items.store.request import describe_spec
    from hllm.items.store.shards import list_specs

    check_pooling(pooling)
    if item_llm is None:
        specs = list_specs(data.embeddings_dir)
        if len(specs) > 1:
            listed = "; ".join(f"{s['key']} ({describe_spec(s)})" for s in specs[:MOST])
            if len(specs) > MOST:
                listed += f"; and {len(specs) - MOST} more, which hllm embed {data.path} --list prints"
            raise AmbiguousError(
                f"{len(specs)} sets of embeddings: {listed}; choose one: --item-llm {specs[0]['key']}"
            )
        item_llm = specs[0]["key"] if specs else "smollm2-135m"
    return load_embeddings(data, item_llm, pooling)


def _neighbours(data: Dataset, embeddings: ItemEmbeddings, samples: int, k: int) -> None:
    """A table of evenly chosen items and those nearest to them."""
    import numpy as np

    from hllm.items.health import neighbours
    from hllm.text.template import field_text

    place = np.flatnonzero(embeddings.has_text)
    if samples == 0 or len(place) < 2:
        return
    field = (embeddings.spec["fields"] or data.meta.get("text_fields") or ["item_id"])[0]
    names = [field_text(value) or "?" for value in data.items[field].to_list()]
    tokens = place[np.linspace(0, len(place) - 1, min(samples, len(place))).astype(int)].tolist()
    rows = [
        (names[token - 1][:40], ", ".join(names[i - 1][:40] for i in near))
        for token, near in zip(tokens, neighbours(embeddings, tokens, k), strict=True)
    ]
    console.table(None, (field, "nearest"), rows, text_columns=2)
