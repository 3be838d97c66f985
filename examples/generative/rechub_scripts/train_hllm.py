"""`run_hllm_*.py`: train torch-rechub's HLLM on a processed folder, through the packed engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hllm.compat.rechub.states import STATES
from hllm.config import Config, load_config
from hllm.data.resplit import resplit
from hllm.errors import ConfigError
from hllm.formats.rechub import write_model
from hllm.items.encoders.names import canonical
from hllm.pipeline import Recommender, evaluate_run, fit_run
from hllm.runs.auto_batch import BatchSize, memory_needed
from hllm.runs.folder import run_state, saved_identity
from hllm.runs.record import identity_of
from hllm.settings import heads_of
from hllm.train.config import chosen
from rechub_scripts.entry import (
    LOSSES,
    Parser,
    common_flags,
    model_flags,
    positive,
    say,
    split_flags,
    warn,
)
from rechub_scripts.environment import ADVICE, check_device, check_embeddings, check_memory
from rechub_scripts.families import BEAUTY, BOOKS, MOVIELENS, Family, check_sequences
from rechub_scripts.preprocess import SHARES
from rechub_scripts.processed import Processed, open_folder

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings

KS = (10, 50, 200)
SMALL_BATCH = 256


def movielens(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`run_hllm_movielens.py`: 10 epochs of batches of 64 on `data/ml-1m/processed`."""
    parser = Parser("Train HLLM on MovieLens-1M")
    parser.flag(
        "--dataset_path", "--data_dir", help="processed folder; data/ml-1m/processed beside the script"
    )
    _flags(parser, epochs=10)
    _run(MOVIELENS, parser, here, arguments)


def amazon_books(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`run_hllm_amazon_books.py`: 5 epochs of batches of 64 on `data/amazon-books/processed`."""
    parser = Parser("Train HLLM on Amazon Books")
    parser.flag(
        "--data_dir", "--dataset_path", help="processed folder; data/amazon-books/processed beside the script"
    )
    _flags(parser, epochs=5)
    _run(BOOKS, parser, here, arguments)


def amazon_beauty(here: Path, arguments: Sequence[str] | None = None) -> None:
    """`run_hllm_amazon_beauty.py`: the flags of Books, 10 epochs."""
    parser = Parser("Train HLLM on Amazon Beauty")
    parser.flag(
        "--data_dir",
        "--dataset_path",
        help="processed folder; data/amazon-beauty/processed beside the script",
    )
    _flags(parser, epochs=10)
    _run(BEAUTY, parser, here, arguments)


def _flags(parser: Parser, epochs: int) -> None:
    model_flags(parser)
    parser.flag("--epochs", "--epoch", type=positive, default=epochs, help=f"passes over the data [{epochs}]")
    parser.flag(
        "--batch_size", type=positive, default=64, help="windows a step, each with one new target [64]"
    )
    parser.flag("--learning_rate", type=float, default=1e-3, help="of Adam [1e-3]")
    parser.flag("--weight_decay", type=float, default=1e-5, help="L2 penalty [1e-5]")
    parser.flag("--n_layers", type=positive, default=2, help="Transformer blocks [2]")
    parser.flag("--dropout", type=float, default=0.1, help="[0.1]")
    parser.flag(
        "--max_seq_len",
        type=positive,
        default=200,
        help="events of a window; longer ones lose their oldest [200]",
    )
    parser.flag("--loss_type", choices=LOSSES, default="nce", help="[nce]")
    parser.flag(
        "--temperature", type=float, help="rechub: of the scores [0.07]; rechub-doc: of the loss [0.1]"
    )
    parser.flag("--seed", type=int, default=2022, help="[2022]")
    parser.flag("--save_dir", default="./", help="where model.pth and the run folder go [./]")
    parser.flag("--resume", action="store_true", help="go on where an interrupted training stopped")
    split_flags(parser)
    common_flags(parser)


def _run(family: Family, parser: Parser, here: Path, arguments: Sequence[str] | None) -> None:
    args = parser.parse(arguments)
    given = args.dataset_path if family is MOVIELENS else args.data_dir
    path = here / "data" / family.name / "processed" if given is None else Path(given).expanduser().absolute()
    options = {
        "output_dir": None if given is None else path,
        "state": None if args.state == STATES[0] else args.state,
    }
    check_sequences(path, family, **options)
    check_embeddings(path, family, args.model_type, args.device, **options)
    device = check_device(args.device, "train")
    folder = open_folder(path, family)
    data = _split(folder.data, args)
    embeddings = folder.item_embeddings(args.model_type)
    config = settings(args, embeddings.vectors.shape[1])
    batch = BatchSize(
        args.batch_size, args.auto_batch, warn, "--batch_size {}", config.training.passes, ADVICE
    )
    _describe(data, embeddings, config, device, batch)
    out = Path(args.save_dir).expanduser() / f"hllm-{family.name}-{_label(args.model_type)}"
    batch = batch.as_recorded(out, data, config, embeddings)
    resume = args.resume or saved_identity(out) == identity_of(
        data, batch.config(config, batch.size), embeddings
    )
    if resume and run_state(out) == "unfinished":
        say(f"{out} holds this training, interrupted; going on from its last checkpoint")
    recommender = fit_run(data, config, out, embeddings, batch, device=args.device, resume=resume)
    _finish(folder, recommender, out, Path(args.save_dir).expanduser())


def settings(args: argparse.Namespace, width: int) -> Config:
    """The state's preset with what the flags change. ConfigError for a value out of range.

    torch-rechub's number of heads (4, 8 or 16) must divide the `width` of the item vectors, as it
    does for every language model; for others, the next smaller one that does.
    """
    changes: dict[str, Any] = {
        "item_llm": _canonical(args.model_type),
        "epochs": args.epochs,
        "learning_rate": args.learning_rate,
        "weight_decay": args.weight_decay,
        "n_layers": args.n_layers,
        "n_heads": next(
            n for n in range(16 if width >= 2048 else 8 if width >= 512 else 4, 0, -1) if width % n == 0
        ),
        "dropout": args.dropout,
        "max_len": args.max_seq_len,
        "loss": args.loss_type,
        "seed": args.seed,
    }
    if args.temperature is not None:
        changes["temperature" if args.state == "rechub" else "loss_temperature"] = args.temperature
    passes = load_config(args.state).training.passes
    return load_config(args.state, overrides={**changes, "batch_tokens": tokens_of(args.batch_size, passes)})


def tokens_of(batch_size: int, passes: int) -> int:
    """Targets of a step that stand for `batch_size` windows, so that an epoch has as many steps as theirs.

    Their epoch has one window a target; ours goes over the targets `passes` times.
    """
    return batch_size * passes


def _split(data: Dataset, args: argparse.Namespace) -> Dataset:
    """The folder's own split, unless another is asked for."""
    if args.split is None and args.ratio is None:
        return data
    name = args.split or "user-ratio"
    if name == "leave-one-out" and args.ratio is not None:
        raise ConfigError("--ratio belongs to --split user-ratio")
    if name == data.meta["split"]["name"] and args.ratio is None:
        return data
    return resplit(
        data, name, args.ratio or (SHARES[args.state] if name == "user-ratio" else None), args.seed
    )


def _describe(
    data: Dataset, embeddings: ItemEmbeddings, config: Config, device: torch.device, batch: BatchSize
) -> None:
    dim = embeddings.vectors.shape[1]
    n_heads = heads_of(dim, config.users.n_heads)
    say(
        f"data: {data.n_users:,} users, {data.n_candidates:,} items, {int(data.train_mask.sum()):,} training events; "
        f"split {data.meta['split']['name']}"
    )
    layers, loss = config.users.n_layers, config.objective.loss
    say(f"model: {config.preset}, width {dim}, {layers} layers, {n_heads} heads, loss {loss}")
    advice = f"--batch_size {max(1, batch.size // 2)}, --auto-batch, or {ADVICE}"
    check_memory(device, memory_needed(data, config, embeddings), advice)
    if device.type == "cuda" and chosen(config.training.batch_tokens) < SMALL_BATCH:
        enough = -(-4 * SMALL_BATCH // config.training.passes)
        warn(
            f"--batch_size {batch.size} leaves a GPU mostly idle, which is slow; --batch_size {enough} does not"
        )


def _finish(folder: Processed, recommender: Recommender, out: Path, save_dir: Path) -> None:
    """Metrics, report and model.pth."""
    from hllm.models.rechub_weights import rechub_weights
    from hllm.report.results import write_results

    assert recommender.network is not None
    weights = rechub_weights(recommender.network)
    weights["item_embeddings"] = folder.by_folder_token(weights["item_embeddings"].cpu())
    write_model(save_dir / "model.pth", weights)
    own, _ = evaluate_run(recommender, baselines=False, k=KS)
    kept, _ = evaluate_run(recommender, ("test",), baselines=False, k=KS, keep_seen=True)
    write_results(recommender, out, own)
    for title, metrics in (
        ("items of the history left out", own["test"]),
        ("items of the history kept, as torch-rechub ranks", kept["test"]),
    ):
        say(f"\nRanking metrics on the test set, {title}:")
        for kind in ("hr", "ndcg"):
            for k in KS:
                say(f"{'Hit' if kind == 'hr' else 'NDCG'}@{k}: {metrics[f'{kind}@{k}']:.4f}")
        say(metrics.result_line())
    record = recommender.record
    say(f"\nbest epoch {record.best['epoch']}, {record.seconds:.1f} s of training and validation")
    say(f"torch-rechub's weights: {save_dir / 'model.pth'}; the run: {out}")
    say(f"next: hllm recommend {out} -k 10. Low values? See docs/low-metrics.md")


def _canonical(model_type: str) -> str:
    """The item LLM's recorded name; an embeddings file may be of a model that nobody here knows."""
    try:
        return canonical(model_type, must_exist=False)
    except ConfigError:
        return model_type


def _label(model_type: str) -> str:
    return model_type.rstrip("/").rsplit("/", 1)[-1]
