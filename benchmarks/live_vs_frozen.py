"""What training the item LLM gains over its frozen vectors: same encoder, same user model, same tries on validation.

    python benchmarks/live_vs_frozen.py prepare DATASET --item-llm minilm --pack PACK
    python benchmarks/live_vs_frozen.py run PACK --out results.jsonl --minutes 9
    python benchmarks/live_vs_frozen.py show results.jsonl [--json results.json]

`prepare` needs the model and polars: it copies the dataset, the rendered texts and the model's weights (as float16,
which both sides then start from) into PACK, weights in parts of 48 MiB. `run` needs neither polars nor a network. It
trains every row that results.jsonl does not hold yet, appends each as it comes, and begins none that would not end
within --minutes; the same command goes on. Rows are (frozen | live) x (text | text+id), in two stages: every --try
(settings of the user half, the same for both sides) is trained with the first seed; the best of them by validation
is then trained with the others. `show` prints validation and test NDCG@10, and the paired difference of live and
frozen over users, seeds averaged, with its 95% bootstrap interval.

Settings: the preset hllm-small, --set for both sides, --live for the live side alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from told import told

from hllm import hardware
from hllm.config import Config, load_config, parse_assignments
from hllm.data.dataset import Dataset
from hllm.evaluate.evaluation import evaluate, parse_max_len
from hllm.evaluate.metrics import Metrics
from hllm.items.embeddings import ItemEmbeddings
from hllm.items.live_items import LiveItems, live_items
from hllm.items.source.live import LiveText
from hllm.runs.build import build_network
from hllm.runs.train import make_trainer

PART = 48 << 20
SIDES, INPUTS = ("frozen", "live"), ("text", "text+id")
METRIC = "ndcg@10"


def prepare(args: argparse.Namespace) -> None:
    """Write PACK."""
    from safetensors.torch import load_file, save

    data = Dataset.load(args.dataset)
    config = load_config("hllm-small", overrides={"item_llm": args.item_llm, **parse_assignments(args.set)})
    made = live_items(data, config.items)
    pack, llm = args.pack, args.pack / "llm"
    shutil.rmtree(pack, ignore_errors=True)
    llm.mkdir(parents=True)
    data.copy_to(pack / "dataset")
    for path in made.folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".txt", ".model"):
            shutil.copy(path, llm / path.name)
    weights = load_file(made.folder / "model.safetensors")
    half = {name: (w.half() if w.is_floating_point() else w).contiguous() for name, w in weights.items()}
    content = save(half, metadata={"format": "pt"})
    for i in range(0, len(content), PART):
        (llm / f"weights.part{i // PART:02}").write_bytes(content[i : i + PART])
    (pack / "texts.json").write_text(json.dumps({"spec": made.spec, "texts": made.texts[1:]}))
    parts = len(list(llm.glob("weights.part*")))
    print(
        f"{pack}: {len(made.texts) - 1:,} texts, {len(content) / 2**20:.0f} MiB of weights in {parts} parts"
    )


def unpacked(pack: Path) -> LiveItems:
    """The texts of PACK, and its model in a folder that transformers reads."""
    folder = Path(tempfile.mkdtemp())
    parts = sorted((pack / "llm").glob("weights.part*"))
    (folder / "model.safetensors").write_bytes(b"".join(p.read_bytes() for p in parts))
    for path in (pack / "llm").glob("*"):
        if path not in parts:
            shutil.copy(path, folder / path.name)
    document = json.loads((pack / "texts.json").read_text())
    document["spec"].pop("key")
    return LiveItems.of(document["spec"], document["texts"], folder)


def configuration(args: argparse.Namespace, side: str, inputs: str, trial: str, seed: int) -> Config:
    """The configuration of a row."""
    given = parse_assignments(args.set) | parse_assignments(trial.split() if trial else [])
    given |= {"train": args.train, "id_embedding": inputs == "text+id", "seed": seed}
    if side == "live":
        return load_config("hllm-small", overrides=given | parse_assignments(args.live))
    # What only a live side reads is dropped, not refused.
    return load_config("hllm-small", overrides=given).model_copy(update={"train": "frozen"})


def frozen_vectors(
    data: Dataset, made: LiveItems, args: argparse.Namespace, device: torch.device
) -> ItemEmbeddings:
    """What the untrained model makes of the texts: the frozen side's vectors, and the whitening of both."""
    config = configuration(args, "live", "text", "", 0)
    network = build_network(data, config, made, device)
    source = next(m for m in network.source.modules() if isinstance(m, LiveText))
    raw = source.raw_table().float().cpu().numpy()
    return ItemEmbeddings(raw, made.has_text, made.spec)


def train_row(
    data: Dataset, config: Config, embeddings: ItemEmbeddings, device: torch.device
) -> tuple[dict[str, Any], dict[str, Metrics]]:
    """Train, and rank every validation and test user by the best epoch."""
    started = time.monotonic()
    trainer = make_trainer(data, data.train_histories(), config, embeddings, device, None, False)
    result = trainer.fit()
    max_len = parse_max_len(config.training.max_len)
    found = {
        split: evaluate(
            trainer.network, data, split, (10,), max_len=max_len, bootstrap=0, details=False
        )
        for split in ("validation", "test")
    }  # fmt: skip
    last = result.history[-1]
    row = {
        **{split: {name: metrics[name] for name in (METRIC, "hr@10")} for split, metrics in found.items()},
        "best_epoch": result.best_epoch,
        "steps": last["step"],
        "seconds": round(time.monotonic() - started, 1),
        "train_seconds": round(result.seconds, 1),
        "peak_gib": None if result.peak_memory is None else round(result.peak_memory / 2**30, 2),
        "plan": last.get("item_llm_plan"),
        "curve": [round(row[METRIC], 5) for row in result.history if METRIC in row],
    }
    return row, found


def wanted(args: argparse.Namespace, rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, str, int]]:
    """What is still to be trained: first every try, then the best one's other seeds."""
    done = {(r["side"], r["inputs"], r["try"], r["seed"]) for r in rows}
    cells = [(side, inputs) for inputs in args.inputs for side in args.sides]
    for trial in args.tries:
        for side, inputs in cells:
            if (side, inputs, trial, args.seeds[0]) not in done:
                yield side, inputs, trial, args.seeds[0]
    for seed in args.seeds[1:]:
        for side, inputs in cells:
            tried = [r for r in rows if (r["side"], r["inputs"], r["seed"]) == (side, inputs, args.seeds[0])]
            tried = [r for r in tried if r["try"] in args.tries]
            if not tried:
                continue
            best = max(tried, key=lambda r: r["validation"][METRIC])["try"]
            if (side, inputs, best, seed) not in done:
                yield side, inputs, best, seed


def run(args: argparse.Namespace) -> None:
    """Train the rows that are missing, for as long as --minutes allow."""
    started = time.monotonic()
    device = hardware.pick_device(args.device)
    data, made = Dataset.load(args.pack / "dataset"), unpacked(args.pack)
    stored: ItemEmbeddings | None = None
    rows = read(args.out) if args.out.is_file() else read(args.earlier) if args.earlier else []
    if not args.out.is_file():
        args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    longest: dict[str, float] = {}
    for r in rows:
        longest[r["side"]] = max(longest.get(r["side"], 0.0), r["seconds"])
    while (row := next(wanted(args, rows), None)) is not None:
        side, inputs, trial, seed = row
        left = 60 * args.minutes - (time.monotonic() - started)
        if left < 1.1 * longest.get(side, 0.0) or left <= 0:
            print(
                f"{row} needs about {longest.get(side, 0.0):.0f} s, {left:.0f} s are left; the same command goes on"
            )
            return
        if stored is None:
            stored = frozen_vectors(data, made, args, device)
        config = configuration(args, side, inputs, trial, seed)
        items = LiveItems(stored.vectors, made.has_text, made.spec, texts=made.texts, folder=made.folder)
        measured, metrics = train_row(data, config, items if config.items.live else stored, device)
        result = {
            "side": side, "inputs": inputs, "try": trial, "seed": seed, **measured,
            "dataset": data.meta["name"], "fingerprint": data.fingerprint, "llm": made.spec["model"],
            "config": config.model_dump(), "hardware": hardware.describe_hardware(),
            "versions": hardware.describe_versions(), "command": hardware.command_line(),
            # Ranks up to 10 of every user, 0 beyond: what NDCG@10 is made of.
            "ranks": {s: np.where(m.ranks <= 10, m.ranks, 0).tolist() for s, m in metrics.items()},
        }  # fmt: skip
        rows.append(result)
        longest[side] = max(longest.get(side, 0.0), measured["seconds"])
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(
            f"{side:6} {inputs:7} seed {seed} [{trial}] validation {measured['validation'][METRIC]:.4f} "
            f"test {measured['test'][METRIC]:.4f}, epoch {measured['best_epoch']}, {measured['steps']} steps, "
            f"{measured['seconds']} s, {measured['plan'] or 'frozen'}",
            flush=True,
        )
    print("every row is there")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def chosen(rows: list[dict[str, Any]], side: str, inputs: str) -> list[dict[str, Any]]:
    """The rows of the try that is best on validation with the first seed."""
    own = [r for r in rows if (r["side"], r["inputs"]) == (side, inputs)]
    if not own:
        return []
    first = min(r["seed"] for r in own)
    best = max((r for r in own if r["seed"] == first), key=lambda r: r["validation"][METRIC])["try"]
    return [r for r in own if r["try"] == best]


def gains(rows: list[dict[str, Any]], split: str) -> np.ndarray:
    """NDCG@10 float64 (users,), averaged over seeds."""
    ranks = np.array([r["ranks"][split] for r in rows], dtype=np.float64)
    return np.where(ranks > 0, 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0).mean(0)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each cell's figures, and live against frozen."""
    from hllm.evaluate.significance import paired_bootstrap

    cells, differences = [], []
    for inputs in INPUTS:
        pair = {side: chosen(rows, side, inputs) for side in SIDES}
        for side, own in pair.items():
            if own:
                cell: dict[str, Any] = {
                    "inputs": inputs, "side": side, "try": own[0]["try"], "seeds": [r["seed"] for r in own],
                    "tried": len({r["try"] for r in rows if (r["side"], r["inputs"]) == (side, inputs)}),
                    "seconds": float(np.mean([r["train_seconds"] for r in own])), "peak_gib": own[0]["peak_gib"],
                }  # fmt: skip
                for split in ("validation", "test"):
                    cell[split] = float(gains(own, split).mean())
                cells.append(cell)
        if all(pair.values()):
            for split in ("validation", "test"):
                found = paired_bootstrap(gains(pair["frozen"], split), gains(pair["live"], split), METRIC)
                differences.append({
                    "inputs": inputs, "split": split, "frozen": found.first, "live": found.second,
                    "gain": found.second / found.first - 1, "interval": [low / found.first for low in found.interval],
                    "p_value": found.p_value, "n_users": found.n_users,
                })  # fmt: skip
    first = rows[0]
    about = {
        name: first[name] for name in ("dataset", "fingerprint", "llm", "hardware", "versions", "command")
    }
    return {
        "benchmark": "live_vs_frozen",
        **about,
        "metric": METRIC,
        "cells": cells,
        "live against frozen": differences,
    }


def show(args: argparse.Namespace) -> None:
    """Print the summary, and write it."""
    found = summary(read(args.results))
    print(f"{found['dataset']}, {found['llm']}, {METRIC}, full ranking, seen filtered")
    for c in found["cells"]:
        print(
            f"{c['inputs']:8} {c['side']:7} validation {c['validation']:.4f} test {c['test']:.4f}  "
            f"{len(c['seeds'])} seeds, best of {c['tried']} tries [{c['try']}], {c['seconds']:.0f} s"
        )
    for d in found["live against frozen"]:
        low, high = d["interval"]
        print(
            f"{d['inputs']:8} {d['split']:10} live against frozen {d['gain']:+.1%} [{low:+.1%}, {high:+.1%}], "
            f"p = {d['p_value']:.4f}, {d['n_users']:,} users"
        )
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("prepare")
    pack.add_argument("dataset", type=Path)
    pack.add_argument("--pack", type=Path, required=True)
    pack.add_argument("--item-llm", default="minilm")
    pack.add_argument("--set", action="append", default=[])
    rows = commands.add_parser("run")
    rows.add_argument("pack", type=Path)
    rows.add_argument("--out", type=Path, required=True)
    rows.add_argument("--earlier", type=Path, help="results of an earlier call, to go on from")
    rows.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    rows.add_argument("--inputs", nargs="+", choices=INPUTS, default=list(INPUTS))
    rows.add_argument("--seeds", nargs="+", type=int, default=[0])
    rows.add_argument(
        "--tries", nargs="+", default=[""], help='settings of one try each: "dropout=.3 epochs=10"'
    )
    rows.add_argument("--train", choices=("full", "lora"), default="full")
    rows.add_argument("--set", action="append", default=[])
    rows.add_argument("--live", action="append", default=[], help="a setting of the live side alone")
    rows.add_argument("--minutes", type=float, default=9.0)
    rows.add_argument("--device", default="auto")
    table = commands.add_parser("show")
    table.add_argument("results", type=Path)
    table.add_argument("--json", type=Path)
    args = parser.parse_args()
    {"prepare": prepare, "run": run, "show": show}[args.command](args)


if __name__ == "__main__":
    told(main)
