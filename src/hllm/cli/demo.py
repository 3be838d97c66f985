"""`hllm demo`: MovieLens-100K from download to report, in a few minutes on two CPU cores."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console


def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    item_llm: Annotated[str, typer.Option(help="Any item LLM, or tfidf or random.")] = "smollm2-135m",
    seed: Annotated[int, typer.Option(help="Random seed of the training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Fetch, prepare, embed, train, evaluate, recommend and report, with the preset `demo`."""
    from hllm.cli.one_run import train_one
    from hllm.cli.recommend import _show
    from hllm.config import load_config
    from hllm.data.prepare import load_dataset
    from hllm.hardware import pick_device
    from hllm.items.embed import embed
    from hllm.pipeline import Recommender
    from hllm.progress import duration

    start = time.monotonic()
    pick_device(device)  # mistakes are answered before the long work
    again = _check_out(out)
    config = load_config("demo", overrides={"item_llm": item_llm, "seed": seed})
    console.note("1/5 fetch and prepare MovieLens-100K")
    data = load_dataset("ml-100k")
    console.note(f"{data!r} in {data.path}")
    console.note(f"2/5 embed item texts with {item_llm}")
    made = embed(data, item_llm, device=device)
    console.note(
        f"{made.stats['encoded']:,} texts encoded, {made.stats['reused']:,} reused; source {made.spec['source']}"
    )
    console.note("3/5 train and evaluate")
    metrics = train_one(
        data, config, out, device=device, overwrite=again, go_on="the same command", embeddings=made
    )
    console.note("4/5 recommend for three users")
    recommender = Recommender.from_pretrained(out, device)
    _show(recommender, recommender.recommend(users=data.user_ids[:3], k=5))
    console.note("5/5 report")
    console.result(f"report: {out / 'report.html'}")
    own, popularity = metrics["test"]["ndcg@10"], metrics["baselines"]["test"]["popularity"]["ndcg@10"]
    console.result(
        f"test NDCG@10 {own:.4f}, {own / popularity:.2f} times popularity's {popularity:.4f}; "
        f"everything took {duration(time.monotonic() - start)}"
    )


def _check_out(out: Path) -> bool:
    """Whether `out` holds a finished demo, which is made again: the demo is there to be seen.

    An interrupted one is continued. Raises ArtifactError for a run that another command made.
    """
    from hllm.errors import ArtifactError
    from hllm.runs.folder import read_record, run_state

    if run_state(out) != "finished":
        return False
    command = read_record(out)["command"]
    if "demo" not in command.split()[1:2]:
        raise ArtifactError(f"{out} holds the run of another command ({command}); choose another --out")
    return True
