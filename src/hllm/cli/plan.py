"""`hllm plan DATASET`: what a training would take, before it is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hllm.cli import console

if TYPE_CHECKING:
    from hllm.runs.plan import Plan


def plan(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder, made by `hllm data prepare`.")],
    preset: Annotated[str, typer.Option(help="demo, hllm-lite, hllm, ...")] = "hllm",
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs.")] = 1,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, l40s or 4090.")] = "h100",
    strategy: Annotated[str, typer.Option(help="ddp, fsdp, zero1, zero2 or zero3.")] = "ddp",
    price: Annotated[float | None, typer.Option(min=0, help="Of a GPU's hour.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="key=value, any number of times.")] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Tokens, operations, memory of each strategy, hours, bottleneck and cost; nothing is trained or downloaded."""
    from dataclasses import asdict

    from hllm.config import load_config, parse_assignments
    from hllm.data.dataset import Dataset
    from hllm.runs.plan import plan as make

    data = Dataset.load(dataset)
    chosen = load_config(preset, config, parse_assignments(set_))
    made = make(data, chosen, gpu, gpus, strategy, price)
    if as_json:
        document = asdict(made)
        for row, memory in zip(document["memory"], made.memory, strict=True):
            row["total"] = memory.total
        console.result(json.dumps(document, allow_nan=False))
        return
    show(made)


def show(made: Plan) -> None:
    """Print a plan."""
    work = made.work
    texts = f", {work.texts:,.0f} texts of {work.text_tokens:.0f} tokens" if work.texts else ""
    console.result(
        f"{work.epochs} epochs of {work.targets:,} targets in {work.steps:,} steps: "
        f"{work.events:,.0f} events a step{texts}"
    )
    for model in made.models:
        console.result(
            f"{model.name}: {(model.weights + model.table) / 1e6:,.0f} M weights, {model.layers} layers"
        )
    parts = ", ".join(f"{name} {seconds / made.step:.0%}" for name, seconds in made.parts.items())
    console.result(
        f"a step: {made.step:.3g} s, {made.useful_teraflop:,.3g} Tflop of use; {parts}; bottleneck: {made.bottleneck}"
    )
    cost = "" if made.cost is None else f", cost {made.cost:,.2f}"
    console.result(
        f"{made.gpus} {made.gpu} by {made.strategy}: {made.hours:.3g} hours, "
        f"{made.hours * made.gpus:.3g} GPU-hours{cost}"
    )
    rows = [
        [m.strategy, *(f"{x:.1f}" for x in (m.weights, m.gradients, m.optimiser, m.activations, m.total)),
         "yes" if m.fits else "no"]
        for m in made.memory
    ]  # fmt: skip
    columns = ["strategy", "weights", "gradients", "optimiser", "activations", "GiB a GPU", "fits"]
    console.table(f"memory of each of {made.gpus} {made.gpu}", columns, rows)
    for line in made.assumptions:
        console.note(f"assumed: {line}")
