"""`run_hstu_*.py`: torch-rechub's HSTU over padded windows, which are made as they are needed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hllm.compat.rechub import HSTUModel, SeqTrainer, rank_windows, topk_metrics
from hllm.compat.rechub.states import STATES
from hllm.compat.rechub.windows import MOVIELENS_DTYPES, StoredWindows
from hllm.data.resplit import resplit
from hllm.data.tables.schema import UNITS_PER_SECOND
from hllm.runs.auto_batch import BatchSize, with_fitting_batch
from rechub_scripts.entry import Parser, common_flags, positive, say, split_flags, warn
from rechub_scripts.environment import ADVICE, check_device, check_memory
from rechub_scripts.families import BOOKS, MOVIELENS, Family, check_sequences
from rechub_scripts.preprocess import SHARES
from rechub_scripts.processed import Processed, open_folder

KS = (10, 50, 200)
# By state: what the flags have where they are not given. Settings of 0.9 alone are not in the older state.
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "ml-1m": {
        "rechub": {
            "epochs": 101, "batch_size": 128, "weight_decay": 0.0, "d_model": 50, "n_heads": 1, "n_layers": 2,
            "max_seq_len": 200, "dropout": 0.2, "dqk": 50, "dv": 50, "score_norm": "l2", "temperature": 0.05,
            "time_bucket_fn": "log", "time_bucket_divisor": 0.301, "time_bucket_unit": "seconds",
            "use_time_embedding": False, "use_output_bias": False, "scale_input_embedding": True,
        },
        "rechub-doc": {
            "epochs": 5, "batch_size": 512, "weight_decay": 1e-5, "d_model": 256, "n_heads": 8, "n_layers": 2,
            "max_seq_len": 200, "dropout": 0.1,
        },
    },
    "amazon-books": {
        state: {
            "epochs": 3, "batch_size": 64, "weight_decay": 1e-5, "d_model": 64, "n_heads": 4, "n_layers": 2,
            "max_seq_len": 50, "dropout": 0.1,
        }
        for state in STATES
    },
}  # fmt: skip


def movielens(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`run_hstu_movielens.py` with release 0.9's flags; its older defaults with `--state rechub-doc`."""
    parser = Parser("Train HSTU on MovieLens-1M")
    _flags(parser)
    for name in ("--dqk", "--dv"):
        parser.flag(name, type=positive, help="width of a head [50; 64 in rechub-doc]")
    parser.flag("--score_norm", choices=("none", "l2"), help="[l2]")
    parser.flag("--temperature", type=float, help="of the scores [0.05]")
    parser.flag("--use_time_embedding", action="store_true", default=None, help="time as an input too")
    parser.flag("--time_bucket_fn", choices=("sqrt", "log"), help="[log]")
    parser.flag("--time_bucket_divisor", type=float, help="[0.301]")
    parser.flag("--time_bucket_unit", choices=("seconds", "minutes"), help="[seconds]")
    parser.flag("--use_output_bias", action="store_true", default=None, help="a bias for every item")
    parser.add_argument("--no_scale_input_embedding", "--no-scale-input-embedding", dest="scale_input_embedding",
                        action="store_false", default=None, help="inputs are not scaled by sqrt(d_model)")  # fmt: skip
    parser.flag("--dropout", type=float, help="[0.2; 0.1 in rechub-doc]")
    _run(MOVIELENS, parser, here, arguments)


def amazon_books(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`run_hstu_amazon_books.py` with release 0.9's flags."""
    parser = Parser("Train HSTU on Amazon Books")
    _flags(parser)
    _run(BOOKS, parser, here, arguments)


def _flags(parser: Parser) -> None:
    parser.flag("--dataset_path", "--data_dir", help="processed folder; the data set's own if absent")
    parser.flag("--model_name", default="hstu", help="a name, for compatibility")
    parser.flag("--epochs", "--epoch", type=positive, help="by state: 101 or 5; Books 3")
    parser.flag("--learning_rate", type=float, default=1e-3, help="[1e-3]")
    parser.flag("--batch_size", type=positive, help="windows a step; by state: 128 or 512; Books 64")
    parser.flag("--weight_decay", type=float, help="by state: 0 or 1e-5; Books 1e-5")
    parser.flag("--device", default="cuda", help="cuda, cuda:N, cpu, or auto")
    parser.flag("--save_dir", default="./", help="where model.pth goes [./]")
    parser.flag("--seed", type=int, default=2022, help="[2022]")
    parser.flag("--max_seq_len", type=positive, help="events of a window [200; Books 50]")
    parser.flag("--d_model", type=positive, help="width; by state: 50 or 256; Books 64")
    parser.flag("--n_heads", type=positive, help="by state: 1 or 8; Books 4")
    parser.flag("--n_layers", type=positive, help="[2]")
    parser.flag("--auto_batch", action="store_true", help="where memory runs out, take a batch that fits")
    split_flags(parser)
    common_flags(parser)


def _run(family: Family, parser: Parser, here: Path, arguments: Sequence[str] | None) -> None:
    args = parser.parse(arguments)
    chosen = settings(args, DEFAULTS[family.name][args.state])
    given = args.dataset_path
    path = here / "data" / family.name / "processed" if given is None else Path(given).expanduser().absolute()
    state = None if args.state == STATES[0] else args.state
    check_sequences(path, family, output_dir=None if given is None else path, state=state)
    folder = open_folder(path, family)
    device = check_device(args.device, "train")
    if args.split is not None and args.split != folder.data.meta["split"]["name"]:
        shares = (args.ratio or SHARES[args.state]) if args.split == "user-ratio" else None
        data = resplit(folder.data, args.split, shares, args.seed)
        folder = Processed(folder.folder, folder.vocab, data, folder.rows)
    parts = windows_of(folder, chosen["max_seq_len"])
    say(f"windows: {', '.join(f'{len(part):,} {name}' for name, part in parts.items())}")
    n_items = len(folder.vocab.item_ids)
    needed = padded_memory(
        chosen["batch_size"],
        chosen["max_seq_len"],
        n_items,
        chosen["d_model"],
        chosen["n_layers"],
        chosen["n_heads"],
    )
    check_memory(device, needed, f"--auto-batch, or {ADVICE}")
    say(
        "HSTU runs over padded windows, as the original does; `hllm train` with --preset sasrec does not, and is faster"
    )

    def loader(name: str, batch_size: int) -> WindowLoader:
        return WindowLoader(parts[name], batch_size, name == "train", args.seed)

    def train(batch_size: int) -> tuple[SeqTrainer, WindowLoader]:
        trainer = make_trainer(args, chosen, n_items + 1, device)
        trainer.fit(loader("train", batch_size), loader("val", batch_size))
        return trainer, loader("test", batch_size)

    def probe(batch_size: int) -> None:
        first = next(iter(loader("train", batch_size)))
        make_trainer(args, chosen, n_items + 1, device).train_one_epoch([first])

    batch = BatchSize(chosen["batch_size"], args.auto_batch, warn, "--batch_size {}", advice=ADVICE)
    trainer, test = with_fitting_batch(train, probe, batch)
    _score(trainer, test)
    say(f"\nweights: {Path(args.save_dir) / 'model.pth'}")


def _score(trainer: SeqTrainer, test: WindowLoader) -> None:
    """Say loss, accuracy and ranking metrics on the test windows."""
    loss, accuracy = trainer.evaluate(test)
    say(f"test loss {loss:.4f}, top-1 accuracy {accuracy:.4f}")
    truth, ranked = rank_windows(trainer.model, test, max(KS), hide_seen=True)
    results = topk_metrics(cast(Any, truth), cast(Any, ranked), topKs=list(KS))
    say("\nRanking metrics on the test set, items of the window left out:")
    for name in ("Hit", "NDCG"):
        for line in results[name]:
            say(line)


def settings(args: argparse.Namespace, defaults: dict[str, Any]) -> dict[str, Any]:
    """Flags as given, defaults of the state for the rest; what neither has is the model's own."""
    asked = {name: value for name, value in vars(args).items() if value is not None}
    names = [*defaults, *DEFAULTS["ml-1m"]["rechub"]]
    return {
        name: asked.get(name, defaults.get(name))
        for name in dict.fromkeys(names)
        if name in asked or name in defaults
    }


def make_trainer(
    args: argparse.Namespace, chosen: dict[str, Any], vocab_size: int, device: torch.device
) -> SeqTrainer:
    """A fresh model of `args.seed` with its optimiser, as the state's script has them."""
    torch.manual_seed(args.seed)
    own = ("epochs", "batch_size", "weight_decay")
    model = HSTUModel(vocab_size, **{k: v for k, v in chosen.items() if k not in own}, state=args.state)
    modern = args.state == "rechub" and "score_norm" in chosen  # Books kept the older optimiser
    params: dict[str, Any] = {"lr": args.learning_rate, "weight_decay": chosen["weight_decay"]}
    return SeqTrainer(
        model,
        optimizer_fn=torch.optim.AdamW if modern else torch.optim.Adam,
        optimizer_params=params | ({"betas": (0.9, 0.98)} if modern else {}),
        n_epoch=chosen["epochs"],
        earlystop_patience=max(chosen["epochs"] + 1, 10) if modern else 10,
        device=device,
        model_path=Path(args.save_dir).expanduser(),
        state=args.state,
    )


def windows_of(folder: Processed, width: int) -> dict[str, StoredWindows]:
    """Every training event that has one before it, and every held-out event, as a padded window."""
    data = folder.data
    numbers = np.zeros(data.n_catalogue + 1, dtype=np.int32)
    numbers[folder.rows] = np.arange(
        len(folder.rows)
    )  # the folder's tokens, so that model.pth fits its vocab.pkl
    offsets = np.asarray(data.offsets)
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    seconds = np.asarray(data.times) // UNITS_PER_SECOND[data.meta["time_unit"]]
    training = np.flatnonzero(np.asarray(data.train_mask) & (np.arange(len(starts)) > starts))
    targets = {"train": training, "val": data.queries["validation"], "test": data.queries["test"]}
    tokens = numbers[data.tokens]
    return {
        name: StoredWindows(
            tokens, seconds, np.maximum(starts[at], at - width), np.asarray(at), width, MOVIELENS_DTYPES
        )
        for name, at in targets.items()
    }


def padded_memory(batch: int, max_len: int, n_items: int, d_model: int, n_layers: int, n_heads: int) -> float:
    """Bytes, roughly, of one training step of a padded model with the scores of every item at every position."""
    scores = 4 * batch * max_len * n_items
    activations = batch * max_len * n_layers * (20 * d_model + 4 * n_heads * max_len)
    return 4.0 * (scores + activations + 4 * n_items * d_model)


class WindowLoader:
    """Batches of windows as `SequenceDataGenerator` gives them, made on the way: memory stays flat."""

    def __init__(self, windows: StoredWindows, batch_size: int, shuffle: bool, seed: int) -> None:
        self.windows, self.batch_size, self.shuffle = windows, batch_size, shuffle
        self.random = np.random.default_rng(seed)

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        n = len(self.windows)
        order = self.random.permutation(n) if self.shuffle else np.arange(n)
        for first in range(0, n, self.batch_size):
            rows = self.windows.rows(order[first : first + self.batch_size])
            names = ("seq_tokens", "seq_positions", "seq_time_diffs", "targets")
            yield tuple(torch.from_numpy(rows[name].astype(np.int64)) for name in names)
