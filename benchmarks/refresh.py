"""What a run loses by standing still: three weeks of purchases under four ways to keep it up to date.

    python benchmarks/refresh.py FOLDER [--days 21] [--set epochs=4] [--out FILE.json]

FOLDER holds interactions.parquet and items.csv of Online Retail (UCI). Models know what happened before the first of
the last `--days` days. For each user and day with a purchase the lists of that morning are held against the day's
first purchase (NDCG@10 and HR@10 over these pairs; seen items kept, since people buy again; who is unknown gets what
is popular, an item the catalogue lacks is a miss).

    nothing          the run of the first morning
    daily refresh    `hllm update` every morning, without training
    weekly training  a training from fresh weights every 7 days, nothing in between
    both             `hllm update` every morning, every 7 days with --train
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from told import told

from hllm import hardware
from hllm.artifacts import write_json
from hllm.config import parse_assignments
from hllm.data.dataset import Dataset
from hllm.pipeline import Recommender

DAY = 86_400
SMALL = {
    "d_model": 32, "n_layers": 1, "n_heads": 2, "epochs": 4, "max_len": 50, "batch_tokens": 4096,
    "learning_rate": 3e-3, "eval_every": 4, "valid_users": 500,
}  # fmt: skip
WAYS = ("nothing", "daily refresh", "weekly training", "both")


def trained(events: pl.DataFrame, items: pl.DataFrame, settings: dict[str, Any], device: str) -> Recommender:
    """A run on `events`; leave-one-out, as any user would start."""
    data = Dataset.from_tables(events, items, name="online-retail", time_unit="s")
    return Recommender.from_preset("sasrec", **settings).fit(data, device=device, progress=False)


def hits(rec: Recommender, day: pl.DataFrame) -> list[int]:
    """Rank of each user's first purchase of the day, 0 where it is not among the first ten."""
    first = day.sort("timestamp", maintain_order=True).unique("user_id", keep="first", maintain_order=True)
    top = rec.recommend(first["user_id"].to_list(), k=10, keep_seen=True, unknown="popular")
    joined = first.join(top.select("user_id", "item_id", "rank"), on=["user_id", "item_id"], how="left")
    return joined["rank"].fill_null(0).to_list()


def follow(
    way: str,
    events: pl.DataFrame,
    items: pl.DataFrame,
    start: int,
    days: int,
    settings: dict[str, Any],
    device: str,
) -> dict[str, Any]:
    """NDCG@10, HR@10 and the seconds that keeping up to date took after the first training."""
    rec = trained(events.filter(pl.col("timestamp") < start), items, settings, device)
    spent, ranks, until = 0.0, [], start
    for number in range(days):
        morning = start + number * DAY
        began = time.perf_counter()
        weekly = number > 0 and number % 7 == 0
        if weekly and way == "weekly training":
            rec = trained(events.filter(pl.col("timestamp") < morning), items, settings, device)
        if number and way in ("daily refresh", "both"):
            new = events.filter(pl.col("timestamp").is_between(until, morning, closed="left"))
            if len(new):
                train = weekly and way == "both"
                rec.update(new, items, train=train, device=device, progress=False)
            until = morning
        spent += time.perf_counter() - began
        day = events.filter(pl.col("timestamp").is_between(morning, morning + DAY, closed="left"))
        ranks += hits(rec, day) if len(day) else []
    found = np.array(ranks)
    gains = np.where(found > 0, 1 / np.log2(np.maximum(found, 1) + 1), 0.0)
    error = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5
    return {
        "way": way, "pairs": len(gains), "ndcg@10": float(gains.mean()), "half_interval": float(error),
        "hr@10": float((found > 0).mean()), "seconds": round(spent, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--days", type=int, default=21)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    events = pl.read_parquet(options.folder / "interactions.parquet").select(
        "user_id", "item_id", "timestamp"
    )
    items = pl.read_csv(options.folder / "items.csv", schema_overrides={"item_id": pl.String})
    last = events["timestamp"].to_numpy().max()
    start = int(last) // DAY * DAY + DAY - options.days * DAY
    settings = SMALL | parse_assignments(options.settings)
    rows = []
    for way in options.ways:
        rows.append(follow(way, events, items, start, options.days, settings, options.device))
        r = rows[-1]
        print(
            f"{way:16} ndcg@10 {r['ndcg@10']:.4f} ±{r['half_interval']:.4f}  hr@10 {r['hr@10']:.4f}  "
            f"{r['seconds']:7.1f} s  {r['pairs']:,} pairs",
            flush=True,
        )
    if options.out is not None:
        document = {
            "benchmark": "refresh", "command": hardware.command_line(), "settings": settings, "days": options.days,
            "hardware": hardware.describe_hardware(), "versions": hardware.describe_versions(), "rows": rows,
        }  # fmt: skip
        write_json(options.out, document)


if __name__ == "__main__":
    told(main)
