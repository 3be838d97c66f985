"""One run of the command line: trained, gone on with, or just shown; then evaluated beside the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.cli import console, processes
from hllm.cli.choices import stored_embeddings

if TYPE_CHECKING:
    import torch

    from hllm.config import Config
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings
    from hllm.pipeline import Recommender
    from hllm.ranks import Ranks
    from hllm.runs.auto_batch import BatchSize


def train_one(
    data: Dataset,
    config: Config,
    folder: Path,
    *,
    device: str,
    resume: bool = False,
    overwrite: bool = False,
    auto_batch: bool = False,
    go_on: str | None = None,
    embeddings: ItemEmbeddings | None = None,
    baselines: bool | Sequence[str] = True,
    evaluated: bool = True,
) -> dict[str, Any]:
    """Train, or continue, or just show, one run; returns its metrics document.

    `go_on`: what to type after Ctrl-C (None: the same command). `embeddings`: those to train on, if loaded already.
    `baselines`, `evaluated`: as in `finish_run`.
    """
    from hllm.ranks import ALONE, launched

    ranks = processes.ranks_now() if launched() else ALONE
    state = ranks.agree(_folder_state(folder) if ranks.first else "new")
    embeddings = embeddings or stored_embeddings(data, config)  # the last that is told without torch

    from hllm.hardware import pick_device
    from hllm.pipeline import Recommender, fit_run
    from hllm.runs.settle import length

    target = pick_device(device)
    if overwrite and not (resume and state == "unfinished"):
        state = "new"
    left_open = None in (config.training.epochs, config.training.batch_tokens)
    earlier = folder if state != "new" and ranks.first else None
    config, batch = _settled(data, config, embeddings, earlier, auto_batch, ranks)
    if ranks.many:
        console.note(processes.described(ranks, config))
    if embeddings is not None:
        _say_what_is_read(config, embeddings)
    if state == "finished":
        console.note(f"{folder} holds this run, finished; --overwrite trains it again")
        recommender = Recommender.from_pretrained(folder, device)
        return finish_run(recommender, folder, baselines, evaluated)
    if state == "unfinished":
        console.note(f"{folder} holds an interrupted run; going on from its last checkpoint")
    elif resume:
        console.note(f"nothing to resume in {folder}: training from the start")
    going_on = state == "unfinished"
    if left_open:
        console.note(length(config))
    _say_what_comes(data, config, embeddings, target, going_on, f"--auto-batch, or {batch.advice}")
    if go_on is None:
        go_on = "the same command, without --overwrite" if overwrite and not resume else "the same command"
    recommender = fit_run(
        data, config, folder, embeddings, batch, device=device, resume=going_on, go_on=go_on
    )
    return finish_run(recommender, folder, baselines, evaluated)


def _settled(
    data: Dataset,
    config: Config,
    embeddings: ItemEmbeddings | None,
    earlier: Path | None,
    auto_batch: bool,
    ranks: Ranks,
) -> tuple[Config, BatchSize]:
    """The configuration with all that was open, and its batch: that of the run in the folder `earlier`, if any.

    Raises ArtifactError where that run is another one.
    """
    from hllm.runs.auto_batch import BatchSize
    from hllm.runs.folder import saved_identity
    from hllm.runs.record import check_identity, identity_of
    from hllm.runs.settle import settled
    from hllm.train.config import chosen

    config = settled(data, config)
    batch = BatchSize(chosen(config.training.batch_tokens), auto_batch, console.note)
    if earlier is not None:
        batch = batch.as_recorded(earlier, data, config, embeddings)
    config = batch.config(config, ranks.agree(batch.size))
    batch = replace(batch, size=chosen(config.training.batch_tokens) // batch.tokens)
    if earlier is not None and (saved := saved_identity(earlier)) is not None:
        check_identity(earlier, saved, identity_of(data, config, embeddings))
    return config, batch


def _folder_state(folder: Path) -> str:
    """`run_state`, of a folder that can be written."""
    from hllm.artifacts import check_writable
    from hllm.runs.folder import run_state

    state = run_state(folder)
    if state == "new":
        check_writable(folder)
    return state


def _say_what_is_read(config: Config, embeddings: ItemEmbeddings) -> None:
    from hllm.items.store.request import describe_spec

    what = describe_spec(embeddings.spec)
    if config.items.live:
        console.note(f"item LLM, trained ({config.items.train}): {what}")
    else:
        console.note(f"item embeddings: {what} (store {embeddings.spec['key']})")


def _say_what_comes(
    data: Dataset,
    config: Config,
    embeddings: ItemEmbeddings | None,
    target: torch.device,
    going_on: bool,
    advice: str,
) -> None:
    """What the configuration chose by itself, and warnings of too little memory or too slow a machine."""
    from hllm.runs.auto_batch import memory_needed, memory_warning
    from hllm.runs.cpu_time import cpu_warning
    from hllm.runs.settle import choices
    from hllm.runs.train import validation_users

    if line := choices(data, config):
        console.note(line)
    if data.queries["validation"].size and (n := validation_users(data, config.training)) is not None:
        console.note(f"validation while training: {n:,} users, drawn by the seed (setting valid_users)")
    if warning := memory_warning(target, memory_needed(data, config, embeddings), advice):
        console.note(f"warning: {warning}")
    if target.type == "cpu" and not going_on and (warning := cpu_warning(data, config, embeddings)):
        console.note(f"warning: {warning}")


def finish_run(
    recommender: Recommender, folder: Path, baselines: bool | Sequence[str] = True, evaluated: bool = True
) -> dict[str, Any]:
    """Evaluate, write the results beside the weights, and show them.

    `baselines`: names, or all or none. Unless `evaluated`, nothing is, and the document is empty.
    """
    from hllm.artifacts import read_jsonl
    from hllm.evaluate.tables import table
    from hllm.evaluate.verdict import verdict
    from hllm.pipeline import evaluate_run
    from hllm.ranks import speaks
    from hllm.report.results import write_results

    document: dict[str, Any] = {}
    if not (evaluated or speaks()):
        return document
    if evaluated:
        own, others = evaluate_run(recommender, baselines=baselines)
        if not speaks():
            return document
        document = write_results(recommender, folder, own, others)
        for split, metrics in own.items():
            console.output().print(table([metrics, *others[split].values()]))
        judged = "test" if "test" in own else next(iter(own), "")
        values = {name: metrics.values for name, metrics in others.get(judged, {}).items()}
        if judged and (line := verdict(own[judged].name, judged, own[judged].values, values)):
            console.result(line)
    record = recommender.record
    plans = [row["item_llm_plan"] for row in read_jsonl(folder / "history.jsonl") if "item_llm_plan" in row]
    if plans:
        console.note(f"gradients of the item LLM: {' -> '.join(dict.fromkeys(plans))}")
    memory = f", {record.peak_gpu_memory_gib} GiB of GPU memory" if record.peak_gpu_memory_gib else ""
    console.result(
        f"best epoch {record.best['epoch']}, {record.seconds:.1f} s of training and validation{memory}; run in {folder}"
    )
    if not evaluated:
        console.note(f"next: hllm evaluate {folder}")
        return document
    report = folder / "report.html"
    console.note(
        f"next: hllm recommend {folder} -k 10; "
        + (f"open {report}" if report.is_file() else f"with polars: hllm report {folder}")
    )
    return document
