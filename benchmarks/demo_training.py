"""Seconds of the demo's training by several checkouts of hllm, turn by turn on one machine, and what it reaches.

    python benchmarks/demo_training.py --out FILE --turns 1 old=CHECKOUT:DATASET new=.:DATASET [--preset demo]

DATASET is a prepared folder with the embeddings of --item-llm in it, made by its checkout (`hllm data prepare`, `hllm
embed`), so that nothing but training differs. Each turn trains with every checkout once, by `python -m hllm train` of
this environment with CHECKOUT/src in front, in the order given and with the seed of the turn. Rows are added to FILE,
so that turns may be measured one call at a time: the next call goes on with the next seed.

Seconds are the run's own: training with its validations, without loading, evaluation and report; they mean something
on a machine that does nothing else. CPU seconds are of the whole process, loading, evaluation and report included.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from told import told

from hllm import hardware
from hllm.artifacts import write_json


def train(checkout: Path, dataset: Path, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training, as the run it leaves tells of it."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "hllm", "train", str(dataset), "--preset", args.preset]
        command += ["--set", f"seed={seed}", "--set", f"item_llm={args.item_llm}", "--device", "cpu"]
        command += ["--out", str(run)]
        environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": str(args.threads)}
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
        record = json.loads((run / "config.json").read_text())
        metrics = json.loads((run / "metrics.json").read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seed": seed,
        "seconds": record["seconds"],
        "process_seconds": round(wall, 1),
        "process_cpu_seconds": round(cpu, 1),
        **{f"{split} ndcg@10": round(metrics[split]["ndcg@10"], 4) for split in ("validation", "test")},
        "best": record["best"],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the turns of each checkout, and its seconds beside those of the first in the same turns."""
    names = list(dict.fromkeys(row["checkout"] for row in rows))
    found = {}
    for name in names:
        own, first = ([row for row in rows if row["checkout"] == of] for of in (name, names[0]))
        keys = ("seconds", "process_cpu_seconds", "validation ndcg@10", "test ndcg@10")
        found[name] = {key: round(statistics.mean(row[key] for row in own), 4) for key in keys}
        for key in ("seconds", "process_cpu_seconds"):
            of_first = sum(row[key] for row in first[: len(own)])
            found[name][f"{key}_to_first"] = round(sum(row[key] for row in own) / of_first, 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="+", metavar="NAME=CHECKOUT:DATASET")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--item-llm", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=hardware.cpu_count())
    args = parser.parse_args()
    for given in args.checkouts:
        checkout = Path(given.partition("=")[2].rpartition(":")[0])
        if not (checkout / "src" / "hllm").is_dir():
            parser.error(f"{given!r}: there is no hllm in {checkout}; give NAME=CHECKOUT:DATASET")
    rows = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    for _ in range(args.turns):
        seed = len({row["seed"] for row in rows})
        for given in args.checkouts:
            name, _, place = given.partition("=")
            checkout, _, dataset = place.rpartition(":")
            row = train(Path(checkout).resolve(), Path(dataset).resolve(), seed, args)
            commit = subprocess.run(
                ["git", "-C", checkout, "rev-parse", "--short", "HEAD"],
                capture_output=True,
                text=True,
                check=False,
            )
            rows.append({"checkout": name, "commit": commit.stdout.strip() or None, **row})
            print(rows[-1], flush=True)
            document = {
                "date": str(datetime.datetime.now(datetime.UTC).date()),
                "command": f"demo_training.py --preset {args.preset} --threads {args.threads}",
                "hardware": hardware.describe_hardware(),
                "threads": args.threads,
                "versions": hardware.describe_versions(),
                "summary": summary(rows),
                "rows": rows,
            }
            write_json(args.out, document)
    for name, means in summary(rows).items():
        print(name, means)


if __name__ == "__main__":
    told(main)
