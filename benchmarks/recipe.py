"""What each change of the recipe gives on validation, on several data sets at once.

    python benchmarks/recipe.py pack DATASET --item-llm minilm --out PACKS/NAME
    python benchmarks/recipe.py run PACKS --out rows.jsonl --tries "" "epochs=20" --seeds 0 1 2 --minutes 8 --workers 4
    python benchmarks/recipe.py show rows.jsonl [--base ""] [--json recipe.json]

`pack` copies a prepared dataset and its item vectors (as float16) to where `run` finds them; `run` needs neither polars
nor a network. It trains every (data set, try, seed) that rows.jsonl does not hold yet, several at once, and begins
none that would not end within --minutes; the same command goes on. A try is a list of settings over --preset,
"key=value key=value", beginning with the names of data sets if it is for these alone: "industrial,ml-100k: epochs=20".
`show` prints validation NDCG@10 of each try on each data set, mean over the seeds, and its mean gain over --base.
A row's `curve_seconds` are the seconds of training at each validation of `curve`, this included; compiling is in them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from told import told

METRICS = ("ndcg@10", "hr@10")
SPLITS = ("validation", "test")
Job = tuple[str, str, int]  # data set, try, seed


def pack(args: argparse.Namespace) -> None:
    """Copy a dataset and its item vectors."""
    from hllm.data.dataset import Dataset
    from hllm.items.embed import load_embeddings

    data = Dataset.load(args.dataset)
    args.out.mkdir(parents=True, exist_ok=True)
    data.copy_to(args.out / "dataset")
    made = load_embeddings(data, args.item_llm, None, None, None)
    np.savez(args.out / "vectors.npz", vectors=made.vectors.astype(np.float16), has_text=made.has_text)
    (args.out / "spec.json").write_text(json.dumps(made.spec))
    print(f"{args.out}: {data.n_catalogue:,} items, {made.vectors.shape[1]} wide")


def train_row(packs: Path, preset: str, job: Job, device: str) -> dict[str, Any]:
    """Train one row, and rank its validation and test users by the best epoch."""
    from hllm import hardware
    from hllm.config import load_config, parse_assignments
    from hllm.data.dataset import Dataset
    from hllm.evaluate.evaluation import evaluate, parse_max_len
    from hllm.items.embed import ItemEmbeddings
    from hllm.runs.settle import settled
    from hllm.runs.train import make_trainer

    name, trial, seed = job
    folder, started = packs / name, time.monotonic()
    data = Dataset.load(folder / "dataset")
    config = load_config(preset, overrides=parse_assignments([*trial.split(), f"seed={seed}"]))
    config = settled(data, config)
    stored = np.load(folder / "vectors.npz")
    vectors = stored["vectors"].astype(np.float32)
    spec = json.loads((folder / "spec.json").read_text())
    embeddings = ItemEmbeddings(vectors, stored["has_text"], spec) if config.items.item_llm else None
    target = hardware.pick_device(device)
    trainer = make_trainer(data, data.train_histories(), config, embeddings, target, None, False)
    seconds, validate, begun = [], trainer.validate, time.monotonic()

    def timed(network: Any) -> dict[str, float]:
        values = validate(network)
        seconds.append(round(time.monotonic() - begun, 2))
        return values

    trainer.validate = timed
    result = trainer.fit()
    max_len = parse_max_len(config.training.max_len)
    row: dict[str, Any] = {"data": name, "try": trial, "seed": seed}
    for split in SPLITS:
        found = evaluate(trainer.network, data, split, (10,), max_len=max_len, bootstrap=0, details=False)
        row[split] = {metric: round(found[metric], 5) for metric in METRICS}
    return row | {
        "best_epoch": result.best_epoch, "epochs": len(result.history), "steps": result.history[-1]["step"],
        "train_seconds": round(result.seconds, 1), "seconds": round(time.monotonic() - started, 1),
        "peak_gib": None if result.peak_memory is None else round(result.peak_memory / 2**30, 2),
        "curve": [round(r["ndcg@10"], 4) for r in result.history if "ndcg@10" in r],
        "curve_seconds": seconds, "compile_seconds": result.compile_seconds,
        "hardware": hardware.describe_hardware(), "versions": hardware.describe_versions(),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def work(packs: Path, preset: str, device: str, workers: int, jobs: Any, done: Any) -> None:
    """Train what comes, until None does."""
    import torch

    from hllm import hardware

    # Threads of several processes that wait for each other make steps a hundred times slower.
    torch.set_num_threads(1 if device == "cpu" else hardware.threads_of_one(workers))
    while (job := jobs.get()) is not None:
        try:
            done.put((job, train_row(packs, preset, job, device)))
        except Exception as err:  # one try that fails must not end the others
            done.put((job, {"error": f"{type(err).__name__}: {err}"[:300]}))


def wanted(args: argparse.Namespace, rows: list[dict[str, Any]]) -> list[Job]:
    """What is still to be trained, in the order of seeds, then tries, then data sets."""
    there = {(r["data"], r["try"], r["seed"]) for r in rows}
    names = args.data or sorted(p.name for p in args.packs.iterdir() if (p / "spec.json").is_file())
    jobs = []
    for seed in args.seeds:
        for trial in args.tries:
            only, colon, settings = trial.rpartition(":")
            for name in only.split(",") if colon else names:
                job = (name.strip(), settings.strip(), seed)
                if job not in there and job not in jobs:
                    jobs.append(job)
    return jobs


def run(args: argparse.Namespace) -> None:
    """Train the rows that are missing, for as long as --minutes allow."""
    started = time.monotonic()
    rows = read(args.out) + (read(args.earlier) if args.earlier else [])
    waiting = wanted(args, rows)
    total, longest = len(waiting), {}
    for r in rows:
        longest[r["data"]] = max(longest.get(r["data"], 0.0), r["seconds"])
    context = multiprocessing.get_context("spawn")
    jobs, done = context.Queue(), context.Queue()
    given = (args.packs, args.preset, args.device, args.workers, jobs, done)
    workers = [context.Process(target=work, args=given, daemon=True) for _ in range(args.workers)]
    for worker in workers:
        worker.start()
    running = 0
    with args.out.open("a") as file:
        while waiting or running:
            while waiting and running < args.workers:
                if time.monotonic() - started + longest.get(waiting[0][0], 0.0) > 60 * args.minutes:
                    print(f"time is up before {len(waiting)} of {total}; the same command goes on")
                    waiting = []
                    break
                jobs.put(waiting.pop(0))
                running += 1
            if not running:
                break
            job, row = done.get()
            running -= 1
            if "error" in row:
                print(f"{job}: {row['error']}", flush=True)
                continue
            longest[row["data"]] = max(longest.get(row["data"], 0.0), row["seconds"])
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(
                f"{row['data']:16} seed {row['seed']} [{row['try']}] validation {row['validation']['ndcg@10']:.4f} "
                f"test {row['test']['ndcg@10']:.4f} / {row['test']['hr@10']:.4f}, epoch {row['best_epoch']} of "
                f"{row['epochs']}, {row['steps']} steps, {row['seconds']} s",
                flush=True,
            )
    for _ in workers:
        jobs.put(None)
    for worker in workers:
        worker.join(10)
    print(f"{time.monotonic() - started:.0f} s")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(rows: list[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """For each try: its mean values on each data set, and the mean of its relative gains over `base` on validation."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in rows:
        cells.setdefault((r["try"], r["data"]), []).append(r)
    found = []
    for trial in dict.fromkeys(r["try"] for r in rows):
        line: dict[str, Any] = {"try": trial, "data": {}}
        gains = []
        for (name, data), own in cells.items():
            if name != trial:
                continue
            values = {f"{s} {m}": statistics.fmean(r[s][m] for r in own) for s in SPLITS for m in METRICS}
            others = {r["seed"]: r for r in cells.get((base, data), [])}
            pairs = [(r, others[r["seed"]]) for r in own if r["seed"] in others]
            if pairs:  # the same seeds on both sides
                mine, theirs = (
                    statistics.fmean(r["validation"][METRICS[0]] for r in side)
                    for side in zip(*pairs, strict=True)
                )
                values["gain"] = mine / theirs - 1
                gains.append(math.log(mine / theirs))
            line["data"][data] = values | {
                "seeds": len(own), "best_epoch": statistics.fmean(r["best_epoch"] for r in own),
                "epochs": statistics.fmean(r["epochs"] for r in own),
                "train_seconds": statistics.fmean(r["train_seconds"] for r in own),
            }  # fmt: skip
        line["gain"] = math.expm1(statistics.fmean(gains)) if gains else None
        found.append(line)
    return found


def show(args: argparse.Namespace) -> None:
    """Print the table, and write it."""
    from hllm.artifacts import write_json

    rows = [row for path in args.results for row in read(path)]
    if not rows:
        raise SystemExit(
            f"no rows in {', '.join(map(str, args.results))}; recipe.py run ... --out FILE writes them"
        )
    lines, names = summary(rows, args.base), sorted({r["data"] for r in rows})
    print("| change | " + " | ".join(names) + " | mean gain |\n|" + "---|" * (len(names) + 2))
    for line in lines:
        parts = []
        for name in names:
            cell = line["data"].get(name)
            gain = "" if cell is None or "gain" not in cell else f" ({cell['gain']:+.1%})"
            if cell is None:
                parts.append("")
                continue
            counts = f"n{cell['seeds']} e{cell['best_epoch']:.0f}"
            parts.append(f"{cell['validation ndcg@10']:.4f}{gain} {counts}")
        mean = "" if line["gain"] is None else f"{line['gain']:+.1%}"
        print(f"| {line['try'] or 'as it was'} | " + " | ".join(parts) + f" | {mean} |")
    if args.json:
        places = {key: rows[0][key] for key in ("hardware", "versions", "date")}
        kept = [{key: value for key, value in row.items() if key not in places} for row in rows]
        about = {"benchmark": "recipe", "preset": args.preset, "command": args.command, "note": args.note}
        write_json(args.json, about | places | {"base": args.base, "lines": lines, "rows": kept})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="action", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("dataset", type=Path)
    packing.add_argument("--item-llm", default="smollm2-135m")
    packing.add_argument("--out", type=Path, required=True)
    trials = commands.add_parser("run")
    trials.add_argument("packs", type=Path)
    trials.add_argument("--out", type=Path, required=True)
    trials.add_argument("--earlier", type=Path, help="rows of an earlier call, which are not trained again")
    trials.add_argument("--data", nargs="+", help="names of packs; all of them if absent")
    trials.add_argument("--tries", nargs="+", default=[""])
    trials.add_argument("--seeds", nargs="+", type=int, default=[0])
    trials.add_argument("--preset", default="hllm-lite")
    trials.add_argument("--minutes", type=float, default=8.0)
    trials.add_argument("--workers", type=int, default=1)
    trials.add_argument("--device", default="auto")
    table = commands.add_parser("show")
    table.add_argument("results", type=Path, nargs="+")
    table.add_argument("--base", default="")
    table.add_argument("--json", type=Path, help="the record to write; it names what follows")
    table.add_argument("--preset", default="hllm-lite")
    table.add_argument("--by", dest="command", default="recipe.py run", help="the command that made the rows")
    table.add_argument("--note", default="")
    args = parser.parse_args()
    {"pack": pack, "run": run, "show": show}[args.action](args)


if __name__ == "__main__":
    told(main)
