"""`hllm train DATASET`: train, evaluate against the baselines, and write a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hllm.cli import console, processes

if TYPE_CHECKING:
    import torch

    from hllm.config import Config
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings
    from hllm.pipeline import Recommender


def train(
    ctx: typer.Context,
    dataset: Annotated[Path, typer.Argument(help="A dataset folder, made by `hllm data prepare`.")],
    preset: Annotated[str, typer.Option(help="demo, hllm-lite, sasrec, ...")] = "hllm-lite",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/DATASET-PRESET if absent.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="key=value, any number of times.")] = [],  # noqa: B006
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with an interrupted training, as the same command does anyway: before --overwrite.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over, whatever run --out holds.")
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train this many seeds, into OUT/seed-0, OUT/seed-1, ...")
    ] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    init_from: Annotated[
        Path | None, typer.Option(help="A run of this dataset, whose weights training starts from.")
    ] = None,
    no_capture: Annotated[
        bool, typer.Option("--no-capture", help="On a GPU, run each step plainly, not as a CUDA graph.")
    ] = False,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="Where memory runs out, halve batch_tokens until it fits.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Train on this many GPUs of this host, a process each.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="How processes share the training: ddp, fsdp, zero1, zero2, zero3, or a DeepSpeed file (.json)."
        ),
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(help="Baselines to evaluate as well, by names and commas (ease,item-knn,...), or none."),
    ] = None,
    no_evaluate: Annotated[
        bool, typer.Option("--no-evaluate", help="Train only; `hllm evaluate RUN` evaluates later.")
    ] = False,
) -> None:
    """Train a model on a dataset, then evaluate it and the baselines.

    After an interruption the same command goes on where it stopped; a finished run is only shown again.
    """
    from hllm import hardware
    from hllm.config import load_config, parse_assignments
    from hllm.data.dataset import Dataset
    from hllm.runs.folder import read_record

    hardware.check_device(device)  # mistakes are answered before torch is imported, where that is possible
    data = Dataset.load(dataset)
    given = parse_assignments(set_) | ({"capture": False} if no_capture else {})
    given |= processes.strategy_settings(strategy)
    if init_from is not None:
        read_record(init_from)  # it is a run
        given["init_from"] = str(init_from.resolve())
    chosen = load_config(preset, config, _with_dataset_default(data, preset, config, given))
    folder = out or Path("runs") / f"{dataset.resolve().name}-{chosen.preset}"
    device = processes.start(ctx, gpus, device)
    options: dict[str, Any] = {
        "device": device,
        "resume": resume,
        "overwrite": overwrite,
        "auto_batch": auto_batch,
        "baselines": chosen_baselines(baselines, data),
        "evaluated": not no_evaluate,
    }
    if seeds == 1:
        train_one(data, chosen, folder, **options)
        return
    _train_seeds(data, chosen, folder, seeds, **options)


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
    from hllm.runs.folder import saved_identity

    ranks = processes.ranks_now() if launched() else ALONE
    state = ranks.agree(_folder_state(folder) if ranks.first else "new")
    embeddings = embeddings or _embeddings(data, config)  # the last that is told without torch

    from hllm.hardware import pick_device
    from hllm.pipeline import Recommender, fit_run
    from hllm.runs.auto_batch import BatchSize
    from hllm.runs.record import check_identity, identity_of
    from hllm.runs.settle import length, settled
    from hllm.train.config import chosen

    target = pick_device(device)
    if overwrite and not (resume and state == "unfinished"):
        state = "new"
    left_open = None in (config.training.epochs, config.training.batch_tokens)
    config = settled(data, config)
    batch = BatchSize(chosen(config.training.batch_tokens), auto_batch, console.note)
    if state != "new" and ranks.first:
        batch = batch.as_recorded(folder, data, config, embeddings)
    config = batch.config(config, ranks.agree(batch.size))
    batch = replace(batch, size=chosen(config.training.batch_tokens) // batch.tokens)
    if state != "new" and ranks.first and (saved := saved_identity(folder)) is not None:
        check_identity(folder, saved, identity_of(data, config, embeddings))
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


def _train_seeds(data: Dataset, config: Config, folder: Path, seeds: int, **options: Any) -> None:
    """Train seeds 0..n-1 (from the configured one on) and show mean and standard deviation."""
    import statistics

    from hllm.artifacts import write_json
    from hllm.ranks import speaks

    documents, embeddings = [], _embeddings(data, config)
    for seed in range(config.training.seed, config.training.seed + seeds):
        console.note(f"seed {seed}")
        one = config.model_copy(update={"seed": seed})
        documents.append(train_one(data, one, folder / f"seed-{seed}", embeddings=embeddings, **options))
    rows, summary = [], {}
    for split in ("validation", "test"):
        for name in ("ndcg@10", "hr@10"):
            values = [document[split][name] for document in documents if split in document]
            if values:
                mean, deviation = statistics.fmean(values), statistics.stdev(values)
                summary[f"{split} {name}"] = {"mean": mean, "deviation": deviation, "values": values}
                rows.append([f"{split} {name}", mean, deviation, ", ".join(f"{v:.4f}" for v in values)])
    if not speaks():
        return
    write_json(folder / "seeds.json", summary)
    caption = (
        f"{config.preset} | {data.meta['name']} {data.fingerprint[:12]} | candidates interacted | seen filtered | "
        f"{data.n_candidates:,} items | seeds {config.training.seed}-{config.training.seed + seeds - 1} | "
        f"best validation {config.training.valid_metric}"
    )
    console.table(
        f"{seeds} seeds of {config.preset}", ["metric", "mean", "deviation", "values"], rows, caption=caption
    )


def chosen_baselines(names: str | None, data: Dataset) -> bool | list[str]:
    """Names as they were typed, checked before anything is trained or ranked."""
    if names is None or names == "none":
        return names is None
    from hllm.baselines.fit import BASELINES, check_baselines
    from hllm.errors import ConfigError

    chosen = list(dict.fromkeys(name.strip() for name in names.split(",")))
    if "none" in chosen or not all(chosen):
        raise ConfigError(
            f"--baselines {names!r}: give names with commas between, of {', '.join(BASELINES)}, or none alone"
        )
    check_baselines(chosen, data)
    return chosen


def _embeddings(data: Dataset, config: Config) -> ItemEmbeddings | None:
    """The embeddings to train on, which must be there already; a trained item LLM reads texts instead."""
    items = config.items
    if items.item_llm is None:
        return None
    if items.live:
        from hllm.pipeline import prepared

        return prepared(data, config)
    from hllm.items.embed import load_embeddings

    return load_embeddings(data, items.item_llm, items.pooling, items.prompt, items.text_fields, items.fusion)


def _with_dataset_default(
    data: Dataset, preset: str, file: Path | None, given: dict[str, Any]
) -> dict[str, Any]:
    """`max_len` as the dataset was prepared with, where nothing else says it."""
    if "max_len" in data.meta and "max_len" not in given and file is None:
        return {**given, "max_len": data.meta["max_len"]}
    return given
