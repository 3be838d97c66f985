"""`hllm tune DATASET`: search for settings on validation, for a given time."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from hllm.cli import console

SHOWN = 10  # trials in the table


def tune(
    dataset: Annotated[Path, typer.Argument(help="A dataset folder, made by `hllm data prepare`.")],
    budget: Annotated[
        str, typer.Option(help="Time spent in trials, over all calls: 90s, 30m, 1h30m.")
    ] = "30m",
    preset: Annotated[str, typer.Option(help="demo, hllm-lite, sasrec, ...")] = "hllm-lite",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search; runs/DATASET-PRESET-tune if absent.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings, which are not searched.")
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", help="key=value: a setting that is not searched.")] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train with one set of settings after the other and keep those that validate best; nothing looks at test.

    The first trial has the settings as they are. After an interruption the same command goes on; with a larger
    budget, a search that was finished does too.
    """
    from hllm import hardware
    from hllm.arguments import seconds_of
    from hllm.cli.choices import stored_embeddings, with_dataset_default
    from hllm.config import load_config, parse_assignments, read_settings, spread
    from hllm.data.dataset import Dataset

    seconds = seconds_of("--budget", budget)
    hardware.check_device(device)
    data = Dataset.load(dataset)
    given = with_dataset_default(data, preset, config, parse_assignments(set_))
    base = load_config(preset, config, given)
    fixed = {
        name.rpartition(".")[2] for name in spread(read_settings(config) if config else {}) | spread(given)
    }
    folder = out or Path("runs") / f"{dataset.resolve().name}-{base.preset}-tune"
    embeddings = stored_embeddings(data, base)

    from hllm.runs.tune import Search, best_of, shown
    from hllm.runs.tune import tune as run_search

    search = Search(
        data,
        lambda settings: load_config(preset, config, {**given, **settings}),
        embeddings,
        hardware.pick_device(device),
        frozenset(fixed),
    )
    console.note(f"searched, on validation {base.training.valid_metric}: {', '.join(search.space())}")
    try:
        rows = run_search(search, folder, seconds, console.note)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("stopped; trials that ended are kept, and the same command goes on") from stop
    best = best_of(rows)
    if best is None:
        console.result(f"no trial of {len(rows)} came to a validation; give it more than --budget {budget}")
        return
    _show(rows, base.training.valid_metric)
    command = ["hllm", "train", str(dataset), "--preset", preset]
    command += [] if config is None else ["--config", str(config)]
    command += [word for part in (*set_, *shown(best["settings"]).split()) for word in ("--set", part)]
    command += ["--out", str(folder.with_name(f"{folder.name}-best"))]
    spent = sum(row["seconds"] for row in rows)
    console.result(
        f"best validation {base.training.valid_metric} {best['value']:.4f} (trial {best['trial']} of {len(rows)}, "
        f"{spent:.0f} s); as it was {_value(rows[0])}"
    )
    console.result(f"train it: {shlex.join(command)}")


def _show(rows: list[dict[str, Any]], metric: str) -> None:
    """The best trials."""
    from hllm.runs.tune import shown

    ordered = sorted(rows, key=lambda row: -(row["value"] or 0.0))[:SHOWN]
    console.table(
        f"the best {len(ordered)} of {len(rows)} trials" if len(rows) > SHOWN else "trials",
        ["settings", "how it ended", "trial", metric, "epoch", "seconds"],
        [
            [
                shown(row["settings"]),
                row["state"],
                row["trial"],
                row["value"],
                row["epoch"],
                round(row["seconds"]),
            ]
            for row in ordered
        ],
        text_columns=2,
    )


def _value(row: dict[str, Any]) -> str:
    return "failed" if row["value"] is None else f"{row['value']:.4f}"
