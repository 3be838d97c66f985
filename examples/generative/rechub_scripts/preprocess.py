"""The first step of each data set: raw interactions to vocabulary and windows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.compat.rechub import histories, windows
from hllm.compat.rechub.states import STATES
from hllm.compat.rechub.windows import StoredWindows
from hllm.data.tables.schema import RATING
from hllm.errors import ConfigError
from rechub_scripts import books
from rechub_scripts.entry import Parser, positive, raw_flags, say, split_flags
from rechub_scripts.families import BEAUTY, BOOKS, MOVIELENS, Family
from rechub_scripts.raw import need_raw
from rechub_scripts.sequences import Sequences, pack, write_folder

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

SHARES = {"rechub": (0.8, 0.1, 0.1), "rechub-doc": (0.7, 0.1, 0.2)}  # the document's text, and its code
ORDERED = "windows in order"  # Beauty's split at commit 9f82159


def movielens(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`preprocess_ml_hstu.py`: ratings.dat to windows of at most 200 events."""
    parser = Parser("MovieLens-1M to sequences (vocab.pkl, train_data.pkl, val_data.pkl, test_data.pkl)")
    raw_flags(parser)
    _sequence_flags(parser, min_seq_len=5)
    parser.flag("--no_single_files", action="store_true", help="not seq_tokens.pkl ... targets.pkl once more")
    args = parser.parse(arguments)
    data_dir, output_dir = folders(args, here)
    raw = need_raw(
        "ml-1m",
        data_dir,
        ("ratings.dat", "movies.dat"),
        download=not args.no_download,
        overwrite=args.overwrite,
    )
    from hllm.data.sources.movielens import read_ml_1m

    tables = read_ml_1m(raw)
    _notes(tables.notes)
    events = tables.interactions
    ratings = events[RATING].to_numpy() if RATING in events.columns else None

    def rule(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> histories.PackedHistories:
        return histories.movielens(users, items, times, ratings, args.state, args.min_seq_len)

    sequences = pack(events, rule, tables.time_unit if tables.time_unit != "index" else None)
    name = args.split or ("leave-one-out" if args.state == "rechub" else "user-ratio")
    parts, split = _windows(sequences, args, name)
    data = write_folder(
        output_dir,
        sequences,
        parts,
        layout="nested" if args.state == "rechub" else "flat",
        split=split,
        name="ml-1m",
        state=args.state,
        items=tables.items,
        text_fields=tables.text_fields,
        single_files=not args.no_single_files,
    )
    _report(MOVIELENS, args, output_dir, data, parts)


def amazon_books(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`preprocess_amazon_books.py`: Stanford's or ByteDance's ratings to ragged windows."""
    parser = Parser("Amazon Books to sequences (vocab.pkl, train_data.pkl, val_data.pkl, test_data.pkl)")
    raw_flags(parser)
    parser.flag("--data_source", choices=books.SOURCES, default="auto", help="auto: what lies there")
    parser.flag("--min_interactions", type=positive, default=5, help="of items and users in Stanford's file")
    _sequence_flags(parser, min_seq_len=5)
    args = parser.parse(arguments)
    data_dir, output_dir = folders(args, here)
    found = books.need_file(
        data_dir,
        "interactions",
        args.data_source,
        download=not args.no_download,
        overwrite=args.overwrite,
    )
    say(f"interactions: {found.path}")
    events = books.interactions(found)
    say(f"{events.height:,} interactions read")
    least = args.min_interactions if found.source == "raw" else None

    def rule(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> histories.PackedHistories:
        return histories.books(users, items, times, least)

    sequences = pack(events, rule)
    sequences = sequences.only(max(args.min_seq_len, 3 if args.state == "rechub-doc" else 4))
    if args.split == "user-ratio":
        parts, split = _windows(sequences, args, args.split)
    else:
        packed = (sequences.tokens, sequences.seconds, sequences.offsets)
        parts = windows.books(*packed, args.max_seq_len, args.min_seq_len, args.state)
        split = {"name": "leave-one-out"}
        if args.state == "rechub-doc":
            say(
                "note: this state's training windows hold the validation targets; our own training leaves them out"
            )
    data = write_folder(
        output_dir,
        sequences,
        parts,
        layout="nested-pad",
        split=split,
        name="amazon-books",
        state=args.state,
    )
    _report(BOOKS, args, output_dir, data, parts)


def amazon_beauty(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`preprocess_amazon_beauty.py`: reviews_Beauty_5.json to windows."""
    parser = Parser("Amazon Beauty to sequences (vocab.pkl, train_data.pkl, val_data.pkl, test_data.pkl)")
    raw_flags(parser)
    _sequence_flags(parser, min_seq_len=2)
    args = parser.parse(arguments)
    data_dir, output_dir = folders(args, here)
    name = "reviews_Beauty_5.json"
    raw = need_raw(
        "amazon-beauty", data_dir, (name,), download=not args.no_download, overwrite=args.overwrite
    )
    from hllm.data.reading.event_files import read_reviews
    from hllm.data.reading.files import first_file
    from hllm.data.sources.amazon import OLD_REVIEWS

    def rule(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> histories.PackedHistories:
        return histories.beauty(users, items, times, args.min_seq_len)

    sequences = pack(read_reviews(first_file(raw, name), OLD_REVIEWS), rule)
    if args.state == "rechub-doc" and args.split is None:
        parts = _ordered(sequences, args)
        split: dict[str, Any] = {
            "name": ORDERED,
            "ratio": list(args.ratio or SHARES["rechub"]),
            "targets": "all",
        }
        parts = {name: replace(part, tokens=part.tokens - 1) for name, part in parts.items()}
        layout = "flat-from-0"
    else:
        parts, split = _windows(sequences, args, args.split or "leave-one-out")
        layout = "nested" if args.state == "rechub" else "flat"
    data = write_folder(
        output_dir, sequences, parts, layout=layout, split=split, name="amazon-beauty", state=args.state
    )
    _report(BEAUTY, args, output_dir, data, parts)


def folders(args: argparse.Namespace, here: Path) -> tuple[Path, Path]:
    """Folder of the raw files, and of the output: `processed/` in the folder of the data set."""
    data_dir = here if args.data_dir is None else Path(args.data_dir).expanduser()
    output_dir = data_dir / "processed" if args.output_dir is None else Path(args.output_dir).expanduser()
    return data_dir.absolute(), output_dir.absolute()


def carried(args: argparse.Namespace) -> dict[str, object]:
    """Options that the next command needs too, where they are not the defaults."""
    data_dir, output_dir = folders(args, Path())
    return {
        "data_dir": None if args.data_dir is None else data_dir,
        "output_dir": None if args.output_dir is None else output_dir,
        "state": None if args.state == STATES[0] else args.state,
    }


def _sequence_flags(parser: Parser, min_seq_len: int) -> None:
    parser.flag("--max_seq_len", type=positive, default=200, help="events of a window at most [200]")
    parser.flag(
        "--min_seq_len",
        type=positive,
        default=min_seq_len,
        help=f"users with fewer events are left out [{min_seq_len}]",
    )
    split_flags(parser)
    parser.flag("--seed", type=int, default=2022, help="of user-ratio [2022]")


def _windows(
    sequences: Sequences, args: argparse.Namespace, name: str
) -> tuple[dict[str, StoredWindows], dict[str, Any]]:
    """Windows of one of the two usual splits, and how `dataset.json` names it."""
    packed = (sequences.tokens, sequences.seconds, sequences.offsets, args.max_seq_len)
    if name == "leave-one-out":
        if args.ratio is not None:
            raise ConfigError("--ratio belongs to --split user-ratio")
        return windows.leave_last_out(*packed), {"name": name}
    shares = args.ratio or SHARES[args.state]
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"--ratio {shares}: give three shares that sum to 1, as 0.8,0.1,0.1")
    parts = windows.user_ratio(*packed, (shares[0], shares[1]), args.seed)
    return parts, {"name": name, "seed": args.seed, "ratio": list(shares), "targets": "all"}


def _ordered(sequences: Sequences, args: argparse.Namespace) -> dict[str, StoredWindows]:
    shares = args.ratio or SHARES["rechub"]
    packed = (sequences.tokens, sequences.seconds, sequences.offsets)
    return windows.beauty(*packed, args.max_seq_len, args.min_seq_len, (shares[0], shares[1]))


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def _report(
    family: Family, args: argparse.Namespace, folder: Path, data: Dataset, parts: dict[str, StoredWindows]
) -> None:
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
    say(f"{data.n_users:,} users, {data.n_candidates:,} items, {data.meta['n_interactions']:,} interactions")
    say(f"windows: {sizes}; split {data.meta['split']['name']}")
    say(f"written to {folder}")
    options = {"model_type": "tinyllama", "device": "cuda", **carried(args)}
    say(f"next, from the project's root: {family.command(family.vectors, **options)}")
