"""What the text gives: ID only, random vectors, TF-IDF and two item LLMs, each with and without ID embeddings.

    python benchmarks/text_table.py DATASET --out benchmarks/results/text_ml-100k.json \
        --preset demo --seeds 3 [--set epochs=20] [--first-seeds-only random,tfidf] [--budget 300]

DATASET is a prepared folder with the embeddings `smollm2-135m`, `minilm`, `tfidf` and `random` in it (`hllm embed`).
Every finished training is written to --out at once; the same command goes on after an interruption.
--budget stops before a training that would pass so many seconds. Prints one table: mean over seeds.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from pathlib import Path
from typing import Any

from told import told

from hllm import Dataset, Recommender, hardware
from hllm.artifacts import read_json, write_json
from hllm.config import parse_assignments

METRICS = ("ndcg@10", "hr@10")
MOST = ("SmolLM2 + ID", "MiniLM + ID", "ID only")  # trained with all --seeds
VARIANTS: dict[str, dict[str, Any]] = {
    "SmolLM2 + ID": {"item_llm": "smollm2-135m", "id_embedding": True},
    "ID only": {"item_llm": None, "id_embedding": True},
    "SmolLM2": {"item_llm": "smollm2-135m", "id_embedding": False},
    "MiniLM + ID": {"item_llm": "minilm", "id_embedding": True},
    "MiniLM": {"item_llm": "minilm", "id_embedding": False},
    "tfidf + ID": {"item_llm": "tfidf", "id_embedding": True},
    "tfidf": {"item_llm": "tfidf", "id_embedding": False},
    "random + ID": {"item_llm": "random", "id_embedding": True},
    "random": {"item_llm": "random", "id_embedding": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="hllm-lite")
    parser.add_argument("--seeds", type=int, default=3, help="for 'ID only' and the item LLMs with ID")
    parser.add_argument(
        "--other-seeds", type=int, default=None, help="for all other variants; --seeds if absent"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--set", action="append", default=[], help="key=value, any number of times")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", type=float, default=float("inf"))
    args = parser.parse_args()
    data, settings = Dataset.load(args.dataset), parse_assignments(args.set)
    document = _document(args.out, data, args.preset, settings)
    start, longest = time.monotonic(), 0.0
    for seed in range(args.seeds):
        for name in args.variants:
            variant = VARIANTS[name]
            others = args.seeds if args.other_seeds is None else args.other_seeds
            wanted = seed < (args.seeds if name in MOST else others)
            if not wanted or any(r["variant"] == name and r["seed"] == seed for r in document["runs"]):
                continue
            if time.monotonic() - start + longest > args.budget:
                print(f"budget spent before {name}, seed {seed}; the same command goes on")
                return
            began = time.monotonic()
            document["runs"].append(
                _train(data, args.preset, {**settings, **variant, "seed": seed}, args.device)
            )
            document["runs"][-1] |= {"variant": name, "seed": seed}
            write_json(args.out, document)
            longest = max(longest, time.monotonic() - began)
            print(f"{name}, seed {seed}: {document['runs'][-1]}", flush=True)
    _print_table(document["runs"])


def _document(out: Path, data: Dataset, preset: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The results so far, of the same data set and settings, or a new record."""
    if out.exists():
        document: dict[str, Any] = read_json(out)
        if (document["dataset"], document["preset"], document["settings"]) != (
            data.fingerprint,
            preset,
            settings,
        ):
            raise SystemExit(f"{out} holds results of other settings; choose another --out")
        return document
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": hardware.command_line(),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "name": data.meta["name"],
        "dataset": data.fingerprint,
        "preset": preset,
        "settings": settings,
        "runs": [],
    }


def _train(data: Dataset, preset: str, settings: dict[str, Any], device: str) -> dict[str, Any]:
    recommender = Recommender.from_preset(preset, **settings).fit(data, device=device, progress=False)
    result: dict[str, Any] = {}
    for split in ("validation", "test"):
        metrics = recommender.evaluate(split=split, bootstrap=0)
        result[split] = {name: metrics[name] for name in METRICS}
    return {**result, "epoch": recommender.record.best["epoch"], "seconds": recommender.record.seconds}


def _print_table(runs: list[dict[str, Any]]) -> None:
    print("| items | seeds | validation NDCG@10 | validation HR@10 | test NDCG@10 | test HR@10 | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in VARIANTS:
        rows = [run for run in runs if run["variant"] == name]
        if not rows:
            continue
        cells = []
        for split in ("validation", "test"):
            for metric in METRICS:
                values = [run[split][metric] for run in rows]
                spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.4f}{spread}")
        seconds = statistics.fmean(run["seconds"] for run in rows)
        print(f"| {name} | {len(rows)} | {' | '.join(cells)} | {seconds:.0f} |")


if __name__ == "__main__":
    told(main)
