"""Rate and peak memory of reading Amazon Books, on synthetic files of its size and shape.

    python benchmarks/books_reading.py --scale 0.1
    python benchmarks/books_reading.py --scale 1 --rechub PATH_TO_TORCH_RECHUB --rechub-share 0.1

The files are made in a temporary folder (1.9 GB at scale 1), or in `--folder DIR`, which is kept:
ratings_Books.csv with 22.5 million ratings of 8.0 million users on 2.3 million items, and meta_Books.json.gz
with 2.4 million items, one Python literal a line, in the published layout. Each reading runs in its own
process, whose peak memory (resident set) is reported. torch-rechub's own scripts run unchanged, on a share
of that size.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from told import told

RATINGS, USERS, ITEMS, CATALOGUE = 22_507_155, 8_026_324, 2_330_066, 2_370_585
RECHUB_FOLDER = "examples/generative/data/amazon-books"
OURS = """
import json, resource, sys, time
from pathlib import Path
from hllm.data.dataset import Dataset
from hllm.data.sources.amazon import read_amazon_books
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
times = {}
start = time.perf_counter()
tables = read_amazon_books(folder)
times["read"] = time.perf_counter() - start
peak_read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows, items = tables.interactions.height, tables.items.height
start = time.perf_counter()
data = Dataset.from_source_tables(tables, name="amazon-books")
del tables
data.save(out)
times["dataset"] = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"times": times, "peak_read": peak_read, "peak": peak, "kept": rows, "items": items}))
"""
THEIRS = """
import contextlib, json, os, resource, sys, time
folder, out, scripts = sys.argv[1:4]
sys.path.insert(0, scripts)
os.environ["TQDM_DISABLE"] = "1"
times, start = {}, time.perf_counter()
def lap(name):
    global start
    times[name] = time.perf_counter() - start
    start = time.perf_counter()
with contextlib.redirect_stdout(sys.stderr):
    import preprocess_amazon_books as books
    import preprocess_amazon_books_hllm as texts
    lap("import")
    ratings = books.load_ratings(folder, "raw", filter_interactions=True)
    lap("ratings")
    sequences, vocab = books.build_sequences(ratings)
    lap("sequences")
    texts.extract_item_text(texts.load_metadata(folder, "raw"))
    lap("texts")
    parts = books.split_data(sequences)
    books.save_data(*parts, vocab, out)
    lap("windows")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"times": times, "peak": peak, "kept": len(ratings)}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.1, help="share of Books' size (1 = 22.5M ratings)")
    parser.add_argument("--folder", type=Path, help="where the files are made and kept, and reused")
    parser.add_argument("--rechub", type=Path, help="a checkout of torch-rechub, to run its scripts beside")
    parser.add_argument(
        "--rechub-share", type=float, default=0.1, help="size of its files, as a share of --scale"
    )
    args = parser.parse_args()
    if args.rechub and not (args.rechub / RECHUB_FOLDER / "preprocess_amazon_books.py").is_file():
        parser.error(
            f"{args.rechub / RECHUB_FOLDER} has no preprocess_amazon_books.py; give a checkout of torch-rechub"
        )
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        ours = run_ours(make_files(root / f"books-{args.scale:g}", args.scale), args.scale)
        if args.rechub:
            share = args.scale * args.rechub_share
            theirs = run_theirs(make_files(root / f"books-{share:g}", share), share, args.rechub)
            say(f"hllm is {theirs / ours:.1f} times as fast per rating, up to sequences and texts")


def run_ours(folder: Path, scale: float) -> float:
    """Seconds a rating, from raw files to a saved dataset."""
    with tempfile.TemporaryDirectory() as out:
        result = run(OURS, folder, Path(out) / "dataset")
    total = report("hllm", result, scale, ("read", "dataset"))
    kept = f"{result['kept']:,} ratings kept, {result['items']:,} items read"
    say(f"  peak after reading {gib(result['peak_read'])}, {kept}")
    return total


def run_theirs(folder: Path, scale: float, rechub: Path) -> float:
    """Seconds a rating, from raw files to sequences and texts; their windows are timed apart."""
    scripts = rechub / RECHUB_FOLDER
    with tempfile.TemporaryDirectory() as out:
        result = run(THEIRS, folder, out, scripts)
    total = report("torch-rechub", result, scale, ("ratings", "sequences", "texts"))
    say(f"  and {result['times']['windows']:.1f} s for its padded windows, which hllm does not need")
    return total


def run(code: str, *arguments: object) -> dict:
    """Run `code` in a new process and return the JSON that it prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"a reading failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(name: str, result: dict, scale: float, stages: tuple[str, ...]) -> float:
    rows = int(RATINGS * scale)
    total = sum(result["times"][stage] for stage in stages)
    parts = ", ".join(f"{stage} {result['times'][stage]:.1f} s" for stage in stages)
    rate = f"{rows / total:,.0f} ratings/s, peak {gib(result['peak'])}"
    say(f"{name}: {rows:,} ratings in {total:.1f} s ({parts}), {rate}")
    return total / rows


def say(text: str) -> None:
    print(text, flush=True)


def gib(kib: int) -> str:
    return f"{kib / 2**20:.2f} GiB"


# ----------------------------------------------------------------------------- synthetic files


def make_files(folder: Path, scale: float) -> Path:
    """ratings_Books.csv and meta_Books.json.gz with the published layout and proportions."""
    ratings, meta = folder / "ratings_Books.csv", folder / "meta_Books.json.gz"
    if not meta.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        rng = np.random.default_rng(0)
        write_ratings(ratings, scale, rng)
        write_meta(folder / "partial", scale, rng)
        (folder / "partial").rename(meta)
        size = (ratings.stat().st_size + meta.stat().st_size) / 2**30
        say(f"made {folder} in {time.perf_counter() - start:.0f} s: {size:.2f} GiB")
    return folder


def write_ratings(path: Path, scale: float, rng: np.random.Generator) -> None:
    """Users and items with the long tails of Books: a tenth of users and 30% of items have 5 ratings."""
    import polars as pl

    rows, users, items = (max(int(n * scale), 100) for n in (RATINGS, USERS, ITEMS))
    user = draw(np.floor(rng.random(users) ** (-1 / 1.5)).clip(max=20_000), rows, rng)
    item = np.sort(draw(rng.lognormal(0, 1.85, items), rows, rng))
    day = rng.integers(10_000, 16_270, rows) * 86_400
    pl.DataFrame(
        {
            "user": pl.Series(user_codes(users))[user],
            "item": pl.Series(item_codes(items))[item],
            "rating": rng.integers(1, 6, rows).astype(float),
            "time": day,
        }
    ).write_csv(path, include_header=False)


def draw(weights: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Row owners: everyone about `weights` times, `rows` in all."""
    ends = np.cumsum(weights * (rows / weights.sum()))
    return np.minimum(np.searchsorted(ends, rng.random(rows) * ends[-1]), len(weights) - 1)


def user_codes(n: int) -> list[str]:
    return [f"A{i * 2_654_435_761 % 36**8:011X}QK"[:14] for i in range(n)]


def item_codes(n: int) -> list[str]:
    """ISBNs for most books, Amazon's own codes for the rest."""
    return [f"{i * 3_571 % 10**10:010d}" if i % 4 else f"B00{i:07X}" for i in range(n)]


def write_meta(path: Path, scale: float, rng: np.random.Generator) -> None:
    """One Python literal a line, as `repr` prints it; level 1 because nothing here depends on it."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for record in records(int(CATALOGUE * scale), rng):
            file.write(repr(record).encode() + b"\n")


def records(n: int, rng: np.random.Generator) -> Iterator[dict]:
    words = ["".join(rng.choice(list("abcdefghijklmnoprstuvwy"), rng.integers(2, 10))) for _ in range(3_000)]
    words += ["it's", '"quoted"', "&amp;", "\n", "&quot;war&quot;", "the", "of", "and", "a"] * 20
    text = " ".join(rng.choice(words, 400_000))
    codes = item_codes(max(n, 200))
    for i in range(n):
        pick = rng.integers(0, 2**31, 8)
        record: dict = {"asin": codes[i]}
        if pick[0] % 10:
            at = int(pick[1] % 2_000_000)
            record["title"] = text[at : at + 20 + int(pick[1] % 60)].strip()
        if pick[2] % 2:
            record["price"] = int(pick[2] % 5_000) / 100
        record["imUrl"] = f"http://ecx.images-amazon.com/images/I/{int(pick[3]):x}L.jpg"
        if pick[4] % 3:
            start, size = int(pick[4] % (len(codes) - 100)), int(pick[4] % 100)
            bought, viewed = codes[start : start + size], codes[start : start + 4]
            record["related"] = {"also_bought": bought, "buy_after_viewing": viewed}
        record["salesRank"] = {"Books": int(pick[5] % 9_000_000)}
        record["categories"] = [["Books"]]
        if pick[6] % 20 < 11:
            at, size = int(pick[6] % 2_000_000), 50 + int(pick[7] % 1_300)
            record["description"] = text[at : at + size]
        yield record


if __name__ == "__main__":
    told(main)
