"""Memory and time of a store that is larger than memory should be: opened, looked up, read in part.

    python benchmarks/large_store.py --items 10000000 --width 1024 --folder /tmp/large --out FILE

Writes a synthetic store of random float16 vectors (20 GB for the sizes above; it is deleted again unless --keep),
then opens it in a process of its own. `anonymous` is what that process holds itself, `mapped` what the system keeps
of the files for it and gives up when memory is short.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from told import told

from hllm import hardware
from hllm.items.store.mapped import StoredVectors
from hllm.items.store.shards import LARGE_SHARD, Shard, Store, write_shard


def write(folder: Path, items: int, width: int) -> None:
    """Shards of random vectors under random keys."""
    draw, rows = np.random.default_rng(0), LARGE_SHARD // (2 * width)
    block = draw.standard_normal((rows, width)).astype(np.float16)
    for number, first in enumerate(range(0, items, rows)):
        n = min(rows, items - first)
        keys = draw.integers(0, 256, (n, 16), dtype=np.uint8)
        block[0, 0] = number  # no two shards alike
        shard = Shard(block[:n], keys, np.zeros(n, dtype=bool))
        write_shard(folder / f"shard-{number:06d}.safetensors", folder.name, shard)


def memory() -> dict[str, float]:
    """GiB of this process, by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.startswith("Rss")}
    return {"anonymous": held["RssAnon"], "mapped": held["RssFile"]}


def read(folder: Path) -> dict[str, Any]:
    """Seconds and GiB of each use."""
    found: dict[str, Any] = {}

    def step(name: str, start: float) -> None:
        found[name] = {"seconds": time.perf_counter() - start, **memory()}

    start = time.perf_counter()
    store = Store(folder)
    step("open", start)
    start = time.perf_counter()
    keys = np.concatenate([shard.keys for shard in store.shards.values()])
    places = store.find(keys)
    assert (places == np.arange(len(keys))).all()
    found["items"], found["width"] = len(keys), store.dim
    step("find every key", start)
    vectors = StoredVectors(store.read, np.concatenate(([-1], places)), store.dim or 0)
    draw = np.random.default_rng(1)
    start = time.perf_counter()
    assert np.isfinite(vectors[draw.integers(1, len(vectors), 1000)]).all()
    step("1,000 random items, their blocks checked", start)
    start = time.perf_counter()
    assert np.isfinite(vectors[1_000_000 : 1_000_000 + 65_536]).all()
    step("65,536 items in a row", start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--read", action="store_true", help="only read what is there, and print JSON")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.folder)))
        return
    options.folder.mkdir(parents=True)
    try:
        start = time.perf_counter()
        write(options.folder, options.items, options.width)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in options.folder.iterdir())
        command = [sys.executable, __file__, "--read", "--folder", str(options.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder, ignore_errors=True)
    result = {
        "items": options.items,
        "width": options.width,
        "gigabytes_on_the_disk": size / 1e9,
        "seconds_to_write": seconds,
        "reading": json.loads(done.stdout),
        "hardware": hardware.describe_hardware(),
        "versions": hardware.describe_versions(),
        "date": datetime.date.today().isoformat(),
        "command": hardware.command_line(),
    }
    for name, row in result["reading"].items():
        if isinstance(row, dict):
            print(
                f"{name:42} {row['seconds']:7.2f} s, anonymous {row['anonymous']:.2f} GiB, mapped {row['mapped']:.2f}"
            )
    print(f"{size / 1e9:.1f} GB on the disk, written in {seconds:.0f} s")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    told(main)
