"""`hllm train DATASET`: train, evaluate against the baselines, and write a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hllm.cli import console, processes
from hllm.cli.choices import chosen_baselines, stored_embeddings, with_dataset_default
from hllm.cli.one_run import train_one

if TYPE_CHECKING:
    from hllm.config import Config
    from hllm.data.dataset import Dataset


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
    flags: dict[str, Any] = {"capture": False} if no_capture else {}
    flags |= processes.strategy_settings(strategy)
    if init_from is not None:
        read_record(init_from)  # it is a run
        flags["init_from"] = str(init_from.resolve())
    given = parse_assignments(set_, flags)
    chosen = load_config(preset, config, with_dataset_default(data, preset, config, given))
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


def _train_seeds(data: Dataset, config: Config, folder: Path, seeds: int, **options: Any) -> None:
    """Train seeds 0..n-1 (from the configured one on) and show mean and standard deviation."""
    import statistics

    from hllm.artifacts import write_json
    from hllm.ranks import speaks

    documents, embeddings = [], stored_embeddings(data, config)
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
