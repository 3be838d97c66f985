"""Training a dataset into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm.artifacts import write_json
from hllm.config import Config
from hllm.data.batches.queries import eval_queries
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Dataset
from hllm.errors import DataError
from hllm.evaluate.evaluation import evaluate, parse_max_len
from hllm.hardware import release_memory
from hllm.items.sound import check_vectors
from hllm.items.source.live import LiveText
from hllm.losses.config import ObjectiveConfig
from hllm.losses.objective import make_objective, masks_history
from hllm.losses.sampled import history_keys
from hllm.losses.views import BatchItems, make_views
from hllm.models.hllm import Network
from hllm.ranks import Ranks, now
from hllm.runs.build import build_network
from hllm.runs.folder import PARALLEL, as_of_now, check_folder, clear_run
from hllm.runs.record import check_identity, identity_of
from hllm.runs.settle import longest_batch, settled
from hllm.runs.warm_start import start_from
from hllm.train.config import TrainingConfig, chosen
from hllm.train.files import read_identity
from hllm.train.trainer import FitResult, Trainer, Validate

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
    ranks = now()
    data.verify()
    histories = data.train_histories()
    check_trainable(data, histories)
    if embeddings is not None and not config.items.live:
        check_vectors(
            embeddings.vectors, embeddings.has_text, data.n_catalogue, lambda token: data.item_ids[token - 1]
        )
    config = settled(data, config)
    identity = identity_of(data, config, embeddings)
    trainer = make_trainer(data, histories, config, embeddings, device, folder, show, identity, start)
    if folder is not None:
        assert trainer.checkpoint is not None
        if ranks.first:
            check_folder(data, folder)
        if ranks.agree(resume and trainer.checkpoint.is_file()):
            if ranks.first:
                check_identity(folder, as_of_now(read_identity(trainer.checkpoint)), identity)
            trainer.resume()
        elif ranks.first:
            clear_run(folder)
        if ranks.first:
            data.copy_to(folder / "data")
            if ranks.many:
                write_json(folder / PARALLEL, trainer.parallel.described(config.training, config.runtime))
    result = trainer.fit()
    if not trainer.parallel.sharded:
        return trainer.network, result
    best = trainer.best
    del trainer
    release_memory()
    return gathered(data, config, embeddings, device, best, ranks), result


def gathered(
    data: Dataset,
    config: Config,
    embeddings: ItemEmbeddings | None,
    device: torch.device,
    best: dict[str, torch.Tensor] | None,
    ranks: Ranks,
) -> Network:
    """A whole network on every rank with the first rank's `best` weights, after a training that held parts of it."""
    network = build_network(data, config, embeddings, device)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with torch.no_grad():
        for name, value in ranks.send(best, device):
            tensors[name].copy_(value)
    for part in network.modules():
        if isinstance(part, LiveText):
            part.ranks = ranks
    return network.eval()


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
    ranks = now()
    config = settled(data, config)
    training = config.training
    if start is not None:
        torch.manual_seed(training.seed)  # as building one does
        network = start.to(device)
    else:
        network = build_network(data, config, embeddings, device)
        if training.init_from is not None:
            start_from(network, Path(training.init_from), data)
    # A step of a live source costs what it encodes: never more than the loss needs.
    sampled = config.objective.loss in ("sampled", "in_batch")
    whole = False if config.items.live and sampled else None
    most = longest_batch(histories, config)
    views = make_views(data.train_counts(), config.objective, most, training.seed, device, whole)
    loader = TrainLoader(
        histories,
        parse_max_len(training.max_len),
        chosen(training.batch_tokens),
        training.seed,
        "cpu" if isinstance(views, BatchItems) else device,  # the batch's items are found on the host
        training.windows,
        training.passes,
    )
    return Trainer(
        network,
        loader,
        views,
        make_objective(config.objective, whole_histories(histories, config.objective, device)),
        training,
        validator(data, training, device, ranks),
        device=device,
        runtime=config.runtime,
        lazy=training.id_updates == "lazy",
        drop_similar=config.objective.drop_similar,
        folder=folder,
        identity=identity,
        show=show,
        ranks=ranks,
    )


def whole_histories(
    histories: Histories, objective: ObjectiveConfig, device: torch.device
) -> torch.Tensor | None:
    """`history_keys` of all training events, each once, on `device`; None where the loss masks no history."""
    if not masks_history(objective):
        return None
    users = np.repeat(np.asarray(histories.users), np.diff(np.asarray(histories.offsets)))
    tokens = torch.from_numpy(np.array(histories.tokens))
    return history_keys(torch.from_numpy(users), tokens).unique_consecutive().to(device)


def validator(data: Dataset, training: TrainingConfig, device: torch.device, ranks: Ranks) -> Validate:
    """What a trainer validates by: a network to the metrics at 10 and at `valid_metric`'s k, without intervals."""
    ks = sorted({10, int(training.valid_metric.partition("@")[2])})
    options: dict[str, Any] = {
        "max_len": parse_max_len(training.max_len),
        "users": validation_users(data, training),
        "sample_seed": training.seed,
        "bootstrap": 0,
        "details": False,
        "ranks": ranks,
    }
    if device.type == "cuda":  # which waits for what a host launches: few large blocks
        options["batch_users"] = 2048
    return lambda network: evaluate(network, data, "validation", ks, **options).values


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
