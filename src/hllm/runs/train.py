"""Training a dataset into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.config import Config
from hllm.data.batches.queries import eval_queries
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Dataset
from hllm.errors import DataError
from hllm.evaluate.evaluation import evaluate, parse_max_len
from hllm.items.sound import check_vectors
from hllm.losses.objective import make_objective
from hllm.losses.views import BatchItems, make_views
from hllm.models.hllm import Network
from hllm.runs.build import build_network
from hllm.runs.folder import as_of_now, check_folder, clear_run
from hllm.runs.record import check_identity, identity_of
from hllm.runs.settle import longest_batch, settled
from hllm.runs.warm_start import start_from
from hllm.train.config import TrainingConfig
from hllm.train.files import read_identity
from hllm.train.trainer import FitResult, Trainer

if TYPE_CHECKING:
    from hllm.data.dataset import Histories
    from hllm.items.embeddings import ItemEmbeddings

VALIDATION_SCORES = 10**10  # users x candidates, above which a sample of the users is validated on


def train_network(
    data: Dataset,
    config: Config,
    embeddings: ItemEmbeddings | None,
    device: torch.device,
    folder: Path | None = None,
    resume: bool = False,
    show: bool = True,
    start: Network | None = None,
) -> tuple[Network, FitResult]:
    """Train on `data`, from fresh weights or those of `start`; the network comes back with its best validation weights.

    With `resume`, a checkpoint in `folder` is continued (there may be none yet); it must be of the
    same configuration and data. Raises ArtifactError where it is not.
    """
    data.verify()
    histories = data.train_histories()
    check_trainable(data, histories)
    if embeddings is not None and not config.items.live:
        check_vectors(embeddings.vectors, embeddings.has_text, data.item_ids)
    config = settled(data, config)
    identity = identity_of(data, config, embeddings)
    trainer = make_trainer(data, histories, config, embeddings, device, folder, show, identity, start)
    if folder is not None:
        check_folder(data, folder)
        if resume and trainer.checkpoint is not None and trainer.checkpoint.is_file():
            check_identity(folder, as_of_now(read_identity(trainer.checkpoint)), identity)
            trainer.resume()
        else:
            clear_run(folder)
        data.copy_to(folder / "data")
    return trainer.network, trainer.fit()


def make_trainer(
    data: Dataset,
    histories: Histories,
    config: Config,
    embeddings: ItemEmbeddings | None,
    device: torch.device,
    folder: Path | None,
    show: bool,
    identity: dict[str, object] | None = None,
    start: Network | None = None,
) -> Trainer:
    """Everything that a training of `config` on `data` takes; the network is `start`, or freshly initialised."""
    config = settled(data, config)
    training, max_len = config.training, parse_max_len(config.training.max_len)
    if start is not None:
        torch.manual_seed(training.seed)  # as building one does
        network = start.to(device)
    else:
        network = build_network(data, config, embeddings, device)
        if training.init_from is not None:
            start_from(network, Path(training.init_from), data)
    counts = data.train_counts()
    # A step of a live source costs what it encodes: never more than the loss needs.
    sampled = config.objective.loss in ("sampled", "in_batch")
    whole = False if config.items.live and sampled else None
    most = longest_batch(histories, config)
    views = make_views(counts, config.objective, most, training.seed, device, whole)
    of_batch = isinstance(views, BatchItems)
    loader = TrainLoader(
        histories,
        max_len,
        training.batch_tokens,
        training.seed,
        "cpu" if of_batch else device,  # the batch's items are found on the host
        training.windows,
        training.passes,
    )

    def validate(model: Network) -> dict[str, float]:
        ks = sorted({10, int(training.valid_metric.partition("@")[2])})
        sample: dict[str, Any] = {"users": validation_users(data, training), "sample_seed": training.seed}
        found = evaluate(model, data, "validation", ks, max_len=max_len, bootstrap=0, details=False, **sample)
        return found.values

    return Trainer(
        network,
        loader,
        views,
        make_objective(config.objective),
        training,
        validate,
        device=device,
        runtime=config.runtime,
        lazy=training.id_updates == "lazy",
        drop_similar=config.objective.drop_similar,
        folder=folder,
        identity=identity,
        show=show,
    )


def validation_users(data: Dataset, training: TrainingConfig) -> int | None:
    """How many users are ranked in a validation while training; None for everyone (`valid_users`)."""
    queries = eval_queries(data, "validation")
    everyone, wanted = len(np.unique(queries.users)), training.valid_users
    if wanted is None:
        scores = len(queries) * data.n_candidates
        wanted = max(1, everyone * VALIDATION_SCORES // scores) if scores > VALIDATION_SCORES else everyone
    return wanted if wanted < everyone else None


def checkpoint_rule(data: Dataset, training: TrainingConfig) -> str:
    """How the weights to keep are chosen: `best validation ndcg@10`, and of how many users where of a sample."""
    n = validation_users(data, training)
    return f"best validation {training.valid_metric}" + ("" if n is None else f" of {n:,} sampled users")


def check_trainable(data: Dataset, histories: Histories) -> None:
    """Raise DataError unless there is something to predict in training, and somebody to validate on."""
    name = data.meta["name"]
    advice = "prepare it with another --split or weaker filters"
    if not (np.diff(np.asarray(histories.offsets)) >= 2).any():
        raise DataError(
            f"no user of {name} has two training events, so there is nothing to predict; {advice}"
        )
    if not len(data.queries["validation"]):
        raise DataError(
            f"{name} has no validation users, and the weights to keep are chosen by them, never by test; {advice}"
        )
