"""Which text, which pooling, which layer, which whitening: item LLM vectors against each other on three data sets.

    python benchmarks/text_options.py DIR --out rows.jsonl [--jobs 4] [--minutes 9]
    python benchmarks/text_options.py DIR --out rows.jsonl --after RECORD.json [--vectors-only] [--data NAME...]
    python benchmarks/text_options.py DIR --out rows.jsonl --show [--json benchmarks/results/text_options_h100.json]

DIR holds data sets as published, in folders of these names: amazon-industrial (interactions.csv, items.csv),
ml-latest-small (ratings.csv, movies.csv, tags.csv) and online-retail (interactions.parquet, items.csv). Each is
prepared once, beside --out.

Every option is screened on amazon-industrial with one seed: of the text (`text_options`) with MiniLM, text alone and
beside ID vectors; of pooling, layer and then whitening with MiniLM and SmolLM2-135M, text alone. The two best of each
by validation NDCG@10, and the default, are then trained with three seeds on all data sets, text alone and beside ID.
Each training is written to --out as it ends; the same command goes on after an interruption, with the rows that are
missing; a training that its own checks stop is a row with the reason under `failed`. --minutes begins none after that
time. --after takes the choices from a record that --json wrote, and trains what is not in it: on the screened data set
beside the defaults, which the new rows are compared with, on the others everything. --vectors-only prepares data sets
and makes vectors, for a machine that shall only train: where all lie beside --out, neither DIR, polars nor an item LLM
is needed. --show prints the tables: test is read for what validation chose, and differences are paired over users,
seeds averaged, with their 95% bootstrap interval.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from told import told

import hllm
from hllm import hardware
from hllm.artifacts import read_json, write_json
from hllm.config import parse_assignments
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, DataError, TrainingError
from hllm.evaluate.metrics import rank_values
from hllm.evaluate.significance import paired_bootstrap
from hllm.items import embed
from hllm.items.resolve import MAX_TOKENS

METRIC = "ndcg@10"
PRESET = "hllm-lite"
SEEDS = (0, 1, 2)
SCREENED = "amazon-industrial"
KEEP_SEEN = {"online-retail"}  # a third of its last items was bought before
EPOCHS = {"online-retail": 10}  # of 398,000 events; the preset's 40 elsewhere
INPUTS = ("text", "text+id")
DEFAULT = ("official", "mean", "256")
POOLINGS = {
    "minilm": [
        f"{how}{at}" for how in ("mean", "weighted-mean", "cls", "last") for at in ("", "@last4", "@4", "@2")
    ],
    "smollm2-135m": [
        f"{how}{at}"
        for how in ("mean", "weighted-mean", "last")
        for at in ("", "@last4", "@25", "@20", "@15", "@10")
    ],
}
WHITENINGS = ("32", "64", "128", "full", "center")  # ranks; every direction; the mean alone


class Row(NamedTuple):
    """What a training is; its results are written under these names."""

    data: str
    llm: str  # "" for ids alone
    text: str
    pooling: str
    whitening: str
    inputs: str
    seed: int

    @property
    def option(self) -> tuple[str, str, str]:
        return self.text, self.pooling, self.whitening


def text_options(fields: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `hllm.embed` of every way to make a text of `fields`, the first of which is the name."""
    rest = fields[1:]
    return {
        "official": {},
        "no prompt": {"prompt": ""},
        "natural": {"template": "natural", "prompt": ""},
        "values": {"template": ". ".join(f"{{{name}}}" for name in fields), "prompt": ""},
        "cleaned": {"clean": True},
        "first field": {"text_fields": list(fields[:1])},
        "32 tokens a field": {"field_tokens": dict.fromkeys(rest, 32)},
        "64 tokens": {"max_tokens": 64},
        "64 tokens, heads": {"max_tokens": 64, "long_text": "heads"},
        "64 tokens, bm25": {"max_tokens": 64, "long_text": "bm25"},
        "fields averaged": {"fusion": "mean"},
        "fields side by side": {"fusion": "concat"},
        "fields, learned weights": {"fusion": "learned"},
    }


def prepared(name: str, source: Path, folder: Path) -> Path:
    """The folder of the data set `name`, made of what is published the first time."""
    target = folder / name
    if not (target / "dataset.json").is_file():
        if not (source / name).is_dir():
            raise SystemExit(
                f"{source / name} is not there: DIR holds a folder for each of {', '.join(READERS)}"
            )
        READERS[name](source / name).save(target)
    return target


def _tables(source: Path) -> Dataset:
    import polars as pl

    found = next(source.glob("interactions.*"))
    read = pl.read_parquet if found.suffix == ".parquet" else pl.read_csv
    items = pl.read_csv(source / "items.csv", schema_overrides={"item_id": pl.String, "price": pl.String})
    interactions = read(found).with_columns(pl.col("item_id").cast(pl.String))
    fields = [name for name in items.columns if name != "item_id"]
    return Dataset.from_tables(interactions, items, name=source.name, text_fields=fields)


def _movielens_with_tags(source: Path) -> Dataset:
    """MovieLens with the tags that users gave a film, the most frequent first, as its third field."""
    import polars as pl

    tags = (
        pl.read_csv(source / "tags.csv")
        .with_columns(pl.col("tag").str.to_lowercase().str.strip_chars())
        .group_by("movieId", "tag")
        .agg(n=pl.len())
        .sort("movieId", "n", "tag", descending=[False, True, False])
        .group_by("movieId", maintain_order=True)
        .agg(tags=pl.col("tag").str.join(", "))
    )
    items = (
        pl.read_csv(source / "movies.csv")
        .with_columns(pl.col("genres").str.replace_all("|", ", ", literal=True))
        .join(tags, on="movieId", how="left", maintain_order="left")
        .rename({"movieId": "item_id"})
    )
    ratings = pl.read_csv(source / "ratings.csv").rename({"userId": "user_id", "movieId": "item_id"})
    return Dataset.from_tables(ratings, items, name=source.name, text_fields=["title", "genres", "tags"])


READERS: dict[str, Callable[[Path], Dataset]] = {
    SCREENED: _tables,
    "ml-latest-small": _movielens_with_tags,
    "online-retail": _tables,
}


def stages(args: argparse.Namespace) -> Iterator[list[Row]]:
    """The trainings of one stage after another; what the later ones are, the results of the earlier ones say."""
    yield from screening(args)
    for name in args.data:
        options = finalists(known(args), args.parts if name == SCREENED else ["texts"])
        rows = [
            *(Row(name, "", "", "", "", "id", seed) for seed in SEEDS[:2]),
            *(
                Row(name, llm, *option, inputs, seed)
                for llm, option in options
                for inputs in INPUTS
                for seed in SEEDS
            ),
        ]
        done = recorded(args, "final")
        yield [row for row in rows if row not in done]


def screening(args: argparse.Namespace) -> Iterator[list[Row]]:
    """The first two stages: every text, pooling and layer, then whitening by the two best of each item LLM."""
    if args.after and SCREENED not in args.data:
        return
    done = recorded(args, "screened")
    texts = text_options(["title", "description"]) if "texts" in args.parts else ()
    poolings = POOLINGS if "poolings" in args.parts else {}
    rows = [
        *(Row(SCREENED, "minilm", name, *DEFAULT[1:], inputs, 0) for name in texts for inputs in INPUTS),
        *(
            Row(SCREENED, llm, "official", how, DEFAULT[2], "text", 0)
            for llm in poolings
            for how in poolings[llm]
        ),
    ]
    yield [row for row in rows if row not in done]
    results = known(args)
    kept = {
        llm: {DEFAULT[1], *(option[1] for option in best(results, llm, "poolings", DEFAULT[2:]))}
        for llm in poolings
    }
    rows = [
        Row(SCREENED, llm, "official", how, whitening, "text", 0)
        for llm in poolings
        for how in sorted(kept[llm])
        for whitening in WHITENINGS
    ]
    yield [row for row in rows if row not in done]


def known(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What choices are made by: the results so far, and those of the record that this run comes after."""
    screened = read_json(args.after)["screened"] if args.after else []
    return [*read(args.out), *({**entry, "seed": SEEDS[0]} for entry in screened)]


def recorded(args: argparse.Namespace, part: str) -> set[Row]:
    """What is not trained again of a `part`, "screened" or "final": the screened data set's rows in the record.

    The defaults are, as new rows are compared with them; of a new finalist every seed is.
    """
    entries = read_json(args.after)[part] if args.after else []
    rows = {row_of({**e, "seed": seed}) for e in entries for seed in SEEDS[: e.get("seeds", 1)]}
    return {row for row in rows if row.data == SCREENED and row.option != DEFAULT}


def best(
    rows: list[dict[str, Any]], llm: str, part: str, whitenings: Sequence[str] = (), n: int = 2
) -> list[tuple[str, ...]]:
    """The `n` options of a part that are best on the screened data set's validation, the default apart.

    Texts are judged by the mean of text alone and text with ID, the rest by text alone.
    """
    found = defaultdict(list)
    for result in rows:
        row = row_of(result)
        if (row.data, row.llm, row.seed) != (SCREENED, llm, SEEDS[0]) or row.option == DEFAULT:
            continue
        text = part == "texts"
        asked = text or (row.inputs == "text" and (not whitenings or row.whitening in whitenings))
        if asked and text != (row.text == DEFAULT[0]):
            found[row.option].append(result["validation"][METRIC])
    return sorted(found, key=lambda option: -float(np.mean(found[option])))[:n]


def finalists(rows: list[dict[str, Any]], parts: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The default and the two best of every screening: (item LLM, option)."""
    chosen: list[tuple[str, tuple[str, ...]]] = [("minilm", DEFAULT)]
    if "texts" in parts:
        chosen += [("minilm", option) for option in best(rows, "minilm", "texts")]
    if "poolings" in parts:
        chosen += [(llm, option) for llm in POOLINGS for option in (DEFAULT, *best(rows, llm, "poolings"))]
    return list(dict.fromkeys(chosen))


def train_group(args: argparse.Namespace, rows: list[Row]) -> int:
    """Train rows of the same vectors, which are made first; each result is appended to --out as it comes."""
    done = 0
    for row in rows:
        if time.time() > args.until:
            return done
        data = dataset(prepared(row.data, args.source, args.out.parent))
        started = time.monotonic()
        embeddings = vectors(data, row, args.device) if row.llm else None
        embedded = time.monotonic()
        recommender = hllm.Recommender.from_preset(PRESET, **settings(row, args.set))
        result = row._asdict() | trained(recommender, data, embeddings, args.device)
        result |= {
            "embedding_seconds": round(embedded - started, 2),
            "cut": embeddings.stats["truncated"] if embeddings else 0,
            "fingerprint": data.fingerprint, "settings": recommender.config.model_dump(),
            "hardware": hardware.describe_hardware(), "versions": hardware.describe_versions(),
            "command": hardware.command_line(), "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }  # fmt: skip
        append(args.out, result)
        done += 1
        shown = [f"{result[split][METRIC]:.4f}" for split in ("validation", "test")]
        print(*row, *shown, f"epoch {result['epoch']}, {result['seconds']:.1f} s", flush=True)
    return done


def apart(args: argparse.Namespace, rows: list[Row]) -> list[list[Row]]:
    """Rows that one process after another trains: all of the same vectors, or each alone where these are made."""
    try:
        if rows[0].llm:
            data = dataset(prepared(rows[0].data, args.source, args.out.parent))
            made(data, rows[0], text_options(data.meta["text_fields"])[rows[0].text])
    except ArtifactError:
        return [rows]
    return [[row] for row in rows]


def embed_group(args: argparse.Namespace, rows: list[Row]) -> None:
    """Make the vectors of rows that share them."""
    if not rows[0].llm:
        return
    found = vectors(dataset(prepared(rows[0].data, args.source, args.out.parent)), rows[0], args.device)
    print(*rows[0][:4], f"{found.vectors.shape}, {found.stats.get('encode_seconds', 0.0):.1f} s", flush=True)


def trained(recommender: hllm.Recommender, data: Dataset, embeddings: Any, device: str) -> dict[str, Any]:
    """Train, and rank every validation and test user; a training that its own checks stop ranks nobody."""
    result: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "failed": None, "ranks": {}}
    try:
        recommender.fit(data, device=device, progress=False, embeddings=embeddings)
    except (DataError, TrainingError) as err:
        result["failed"] = str(err)
    else:
        result |= {"epoch": recommender.record.best["epoch"], "seconds": recommender.record.seconds}
    for split in ("validation", "test"):
        ranks = np.zeros(len(data.queries[split]), dtype=np.int64)
        if not result["failed"]:
            kept = data.meta["name"] in KEEP_SEEN
            ranks = recommender.evaluate(split=split, k=10, keep_seen=kept, bootstrap=0).ranks
        result[split] = {name: float(rank_values(ranks, name).mean()) for name in (METRIC, "hr@10")}
        result["ranks"][split] = np.where(ranks <= 10, ranks, 0).tolist()
    return result


@cache
def dataset(folder: Path) -> Dataset:
    return Dataset.load(folder)


def vectors(data: Dataset, row: Row, device: str) -> Any:
    """The item vectors of a row, from the data set's store once they are made."""
    arguments = text_options(data.meta["text_fields"])[row.text]
    # Options that read fields apart share the stores of these, each of which one process writes.
    apart = {"fusion", "text_fields"} & arguments.keys()
    shared = FileLock(data.path / "fields.lock") if apart else nullcontext()
    with shared, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that texts are cut, which the row counts
        with suppress(ArtifactError):
            return made(data, row, arguments)
        return hllm.embed(data, row.llm, row.pooling, device=device, progress=False, **arguments)


def made(data: Dataset, row: Row, arguments: dict[str, Any]) -> Any:
    """The item vectors of a row, in whatever precision they are there; ArtifactError if they are not."""
    given = {"fusion": "together", "prompt": None, "text_fields": None, "max_tokens": MAX_TOKENS} | arguments
    fusion, prompt, fields, max_tokens = (
        given.pop(name) for name in ("fusion", "prompt", "text_fields", "max_tokens")
    )
    written = {
        "quantize": None, "template": "official", "clean": False, "field_tokens": None, "long_text": "cut",
        "store": "fp32",
    }  # fmt: skip
    options = embed.text_options(**{**written, **given})
    return embed.requested(
        data, row.llm, row.pooling, prompt, fields, "auto", max_tokens, options, fusion
    ).load()


def settings(row: Row, given: dict[str, Any]) -> dict[str, Any]:
    """What of the preset a row changes."""
    chosen: dict[str, Any] = {"seed": row.seed, "eval_every": 2, "epochs": EPOCHS.get(row.data, 40), **given}
    if not row.llm:
        return chosen | {"item_llm": None}
    chosen |= {"item_llm": row.llm, "pooling": row.pooling, "id_embedding": row.inputs == "text+id"}
    if "learned" in row.text:
        chosen["fusion"] = "learned"
    if row.whitening == "center":
        return chosen | {"whiten": "center"}
    return chosen | {"whiten_rank": 2**16 if row.whitening == "full" else int(row.whitening)}


def append(path: Path, result: dict[str, Any]) -> None:
    """Add a line to `path` in one write, as other processes add theirs."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(result) + "\n").encode())
    finally:
        os.close(file)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def row_of(result: dict[str, Any]) -> Row:
    return Row(*(result[name] for name in Row._fields))


def run(args: argparse.Namespace) -> None:
    """Train what is missing, stage by stage."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.data:
        prepared(name, args.source, args.out.parent)
    for rows in stages(args):
        done = set(map(row_of, read(args.out)))
        groups = defaultdict(list)
        for row in dict.fromkeys(rows):
            if row not in done:
                groups[row.data, row.llm, row.text, row.pooling].append(row)
        if args.vectors_only:
            for group in groups.values():
                embed_group(args, group)
            continue
        parts = [part for group in groups.values() for part in apart(args, group)]
        with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
            trained = sum(pool.map(partial(train_group, args), parts))
        if trained < sum(map(len, parts)):
            raise SystemExit("out of time; the same command goes on")
    print("every vector is there" if args.vectors_only else "every row is there; --show prints the tables")


def gains(results: list[dict[str, Any]], split: str) -> np.ndarray:
    """NDCG@10 float64 (users,), averaged over seeds."""
    return np.mean([rank_values(np.array(r["ranks"][split]), METRIC) for r in results], axis=0)


def cell(rows: list[dict[str, Any]], base: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """Mean over seeds of a split, and its relative gain over `base`, paired over users, with its interval."""
    own = gains(rows, split)
    found: dict[str, Any] = {
        METRIC: float(own.mean()),
        "hr@10": float(np.mean([r[split]["hr@10"] for r in rows])),
    }
    if base and base != rows:
        compared = paired_bootstrap(gains(base, split), own, METRIC)
        found["gain"] = compared.difference / compared.first
        found["interval"] = [edge / compared.first for edge in compared.interval]
    return found


def summary(rows: list[dict[str, Any]], after: Path | None = None) -> dict[str, Any]:
    """Screened: seed 0, validation alone. Final: what has every seed, test beside validation."""
    groups = defaultdict(list)
    for result in rows:
        groups[row_of(result)._replace(seed=-1)].append(result)
    screened, final = [], []
    for row, results in groups.items():
        results.sort(key=lambda r: r["seed"])
        base = groups.get(Row(row.data, row.llm, *DEFAULT, row.inputs, -1), [])
        about = {name: value for name, value in row._asdict().items() if name != "seed"}
        if row.data == SCREENED and row.llm and results[0]["seed"] == SEEDS[0]:
            entry = cell(results[:1], base[:1], "validation")
            screened.append({**about, "validation": entry, "cut": results[0]["cut"]})
        if not row.llm or len(results) == len(SEEDS):
            splits = {split: cell(results, base, split) for split in ("validation", "test")}
            if ids := groups.get(Row(row.data, "", "", "", "", "id", -1)) if row.llm else None:
                over = cell(results, ids, "test")
                splits["over_ids"] = {name: over[name] for name in ("gain", "interval")}
            final.append({**about, "seeds": len(results), **splits})
    first = rows[0]
    return {
        "benchmark": "text_options", "metric": METRIC, "date": first["date"], "preset": PRESET,
        "trainings": len(rows),
        "command": "python benchmarks/text_options.py DIR --out rows.jsonl"
        + (f" --after {after}" if after else ""),
        **{name: first[name] for name in ("hardware", "versions")},
        "fingerprints": {r["data"]: r["fingerprint"] for r in rows},
        "screened": screened, "final": final,
    }  # fmt: skip


def show(args: argparse.Namespace) -> None:
    """Print the tables of what is there, and write them."""
    rows = read(args.out)
    if not rows:
        raise SystemExit(f"{args.out} holds no results yet; run the command without --show first")
    found = summary(rows, args.after)
    print(
        f"{METRIC}, full ranking; {len(rows)} trainings of {PRESET}. Screened on {SCREENED}, validation, one seed:"
    )
    print("| item LLM | text | pooling | whitening | inputs | validation | against the default |")
    print("|---|---|---|---|---|---|---|")
    for entry in sorted(found["screened"], key=lambda e: (e["llm"], e["inputs"], -e["validation"][METRIC])):
        print(f"| {_names(entry)} | {entry['inputs']} | {_cells(entry['validation'])} |")
    print("\nAll data sets, mean over seeds:")
    print(
        "| data | item LLM | text | pooling | whitening | inputs | seeds | validation | gain | test | gain | over ids |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for entry in sorted(found["final"], key=lambda e: (e["data"], e["inputs"], e["llm"])):
        splits = " | ".join(_cells(entry[split]) for split in ("validation", "test"))
        over = _gain(entry["over_ids"]) if "over_ids" in entry else ""
        print(
            f"| {entry['data']} | {_names(entry)} | {entry['inputs']} | {entry['seeds']} | {splits} | {over} |"
        )
    if args.json:
        write_json(args.json, found)


def _names(entry: dict[str, Any]) -> str:
    return " | ".join(entry[name] for name in ("llm", "text", "pooling", "whitening"))


def _cells(found: dict[str, Any]) -> str:
    return f"{found[METRIC]:.4f} | " + (_gain(found) if "gain" in found else "")


def _gain(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['gain']:+.1%} [{low:+.1%}, {high:+.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=("texts", "poolings"), default=["texts", "poolings"])
    parser.add_argument("--data", nargs="+", choices=list(READERS), default=list(READERS))
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument(
        "--set", action="append", default=[], help="key=value of every training, such as epochs=1"
    )
    parser.add_argument("--after", type=Path, help="a record of --json: its choices stand, its rows are done")
    parser.add_argument("--vectors-only", action="store_true", help="make the vectors that rows need")
    parser.add_argument("--show", action="store_true", help="print the tables of what is there")
    parser.add_argument("--json", type=Path, help="with --show: write them too")
    args = parser.parse_args()
    args.set, args.until = parse_assignments(args.set), time.time() + 60 * args.minutes
    show(args) if args.show else run(args)


if __name__ == "__main__":
    told(main)
