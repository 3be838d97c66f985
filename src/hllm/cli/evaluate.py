"""`hllm evaluate`: full-ranking metrics of a run, or of anyone's list of recommendations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hllm.cli import console, processes
from hllm.errors import ConfigError, unknown


def evaluate(
    ctx: typer.Context,
    run: Annotated[Path | None, typer.Argument(help="A run folder; or use --recs and --truth.")] = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    k: Annotated[list[int], typer.Option("--k", "-k", help="Cut-off, any number of times.")] = [10, 50, 200],  # noqa: B006
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Let items of the history compete.")] = False,
    candidates: Annotated[
        str, typer.Option(help="interacted, or catalogue: items without events too.")
    ] = "interacted",
    recs: Annotated[Path | None, typer.Option(help="A table user_id, item_id, rank (or score).")] = None,
    truth: Annotated[Path | None, typer.Option(help="A table user_id, item_id of held-out items.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Rank on this many GPUs of this host, a process each.")
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(help="Baselines to evaluate as well, by names and commas (ease,item-knn,...), or none."),
    ] = None,
) -> None:
    """Rank every held-out item among all candidates and average over users."""
    if (recs is None) != (truth is None) or (run is None) == (recs is None):
        raise ConfigError("give a run folder (hllm evaluate RUN), or both --recs FILE and --truth FILE")
    if recs is not None and truth is not None:
        _evaluate_files(recs, truth, k, as_json)
        return
    assert run is not None
    from hllm.cli.choices import chosen_baselines
    from hllm.evaluate.metrics import as_document, check_ks
    from hllm.evaluate.tables import table
    from hllm.evaluate.verdict import verdict
    from hllm.hardware import check_device
    from hllm.runs.folder import read_record

    check_device(device)
    check_ks(k)
    if split not in ("validation", "test"):
        raise ConfigError(unknown("split", split, ("validation", "test")))
    read_record(run)  # the last that can be told without torch
    device = processes.start(ctx, gpus, device)
    from hllm.pipeline import Recommender, evaluate_run

    recommender = Recommender.from_pretrained(run, device)
    assert recommender.dataset is not None
    chosen = chosen_baselines(baselines, recommender.dataset)
    options = {"k": k, "keep_seen": keep_seen, "candidates": candidates}
    own, others = evaluate_run(recommender, [split], baselines=chosen, **options)
    if line := verdict(
        own[split].name, split, own[split].values, {n: m.values for n, m in others[split].items()}
    ):
        console.note(line)
    if as_json:
        document = as_document(own, others, recommender.record.best.get("epoch"))
        console.result(json.dumps(document, allow_nan=False))
        return
    console.output().print(table([own[split], *others[split].values()]))


def _evaluate_files(recs: Path, truth: Path, ks: list[int], as_json: bool) -> None:
    from hllm.evaluate.files import evaluate_files

    metrics = evaluate_files(recs, truth, ks)
    if as_json:
        console.result(json.dumps({"recs": metrics.to_dict()}, allow_nan=False))
        return
    rows = [
        [f"@{k}", *(metrics[f"{kind}@{k}"] for kind in ("ndcg", "hr", "recall", "mrr"))]
        for k in sorted(set(ks))
    ]
    console.table(None, ["k", "ndcg", "hr", "recall", "mrr"], rows, caption=metrics.result_line())
