"""Training a dataset into a run folder, and reading it back.

config.json          what the run is; written last, so that its presence means "finished"
model.safetensors    weights of the best validation epoch
data/                histories, splits and catalogue: all that recommending needs
history.jsonl        one line an epoch
checkpoints/         last.safetensors, to resume from
"""

from __future__ import annotations

import datetime
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm import hardware
from hllm.artifacts import read_json, read_tensors, write_json, write_tensors
from hllm.config import Config, by_short_name, make_config
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Dataset
from hllm.errors import ArtifactError, ConfigError, DataError
from hllm.evaluate.evaluation import evaluate, parse_max_len
from hllm.items.source.whitening import EPSILON
from hllm.models.hllm import HLLM
from hllm.runs.build import build_network, empty_network
from hllm.train.checkpoint import read_identity
from hllm.train.trainer import FitResult, Trainer

if TYPE_CHECKING:
    from hllm.data.dataset import Histories
    from hllm.items.embed import ItemEmbeddings

FORMAT, VERSION = "hllm-run", 2
READABLE = (1, 2)  # 1: the settings flat, without sections
OURS = {"config.json", "model.safetensors", "data", "history.jsonl", "checkpoints"}
MADE_LATER = {"metrics.json", "ranks", "report.html", "examples.json", "README.md"}


@dataclass(frozen=True)
class RunRecord:
    """What `config.json` tells of a run beside its configuration."""

    dataset: dict[str, Any] = field(default_factory=dict)
    embeddings: dict[str, Any] | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    created: str = ""
    best: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None  # of training and validation
    peak_gpu_memory_gib: float | None = None

    def finished(self, result: FitResult) -> RunRecord:
        """The record with what training found."""
        gib = None if result.peak_memory is None else round(result.peak_memory / 2**30, 2)
        best = {"epoch": result.best_epoch, "value": result.best_value}
        return replace(self, best=best, seconds=round(result.seconds, 2), peak_gpu_memory_gib=gib)


def new_record(data: Dataset, config: Config, embeddings: ItemEmbeddings | None) -> RunRecord:
    """The record of a run about to start on this machine."""
    names = ("name", "fingerprint", "n_users", "n_candidates", "n_catalogue", "n_interactions", "split")
    return RunRecord(
        dataset={name: data.meta[name] for name in names},
        embeddings=None if embeddings is None else embeddings.spec,
        hardware=hardware.describe_hardware(),
        versions=hardware.describe_versions(),
        command=hardware.command_line(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def identity_of(data: Dataset, config: Config, embeddings: ItemEmbeddings | None) -> dict[str, Any]:
    """What two trainings must share for one to continue the other."""
    key = None if embeddings is None else embeddings.spec["key"]
    return {"config": config.model_dump(), "dataset": data.fingerprint, "embeddings": key}


def train_network(
    data: Dataset,
    config: Config,
    embeddings: ItemEmbeddings | None,
    device: torch.device,
    folder: Path | None = None,
    resume: bool = False,
    show: bool = True,
) -> tuple[HLLM, FitResult]:
    """Train on `data`; the network comes back with its best validation weights.

    With `resume`, a checkpoint in `folder` is continued (there may be none yet); it must be of the
    same configuration and data. Raises ArtifactError where it is not.
    """
    max_len = parse_max_len(config.training.max_len)
    histories = data.train_histories()
    check_trainable(data, histories)
    network = build_network(data, config, embeddings).to(device)
    training = config.training
    loader = TrainLoader(
        histories, max_len, training.batch_tokens, training.seed, device, training.windows, training.passes
    )

    def validate(model: HLLM) -> dict[str, float]:
        metric_k = int(config.training.valid_metric.partition("@")[2])
        ks = sorted({10, metric_k})
        return evaluate(model, data, "validation", ks, max_len=max_len, bootstrap=0, details=False).values

    identity = identity_of(data, config, embeddings)
    trainer = Trainer(network, loader, config, validate, folder, identity, show)
    if folder is not None:
        check_folder(data, folder)
        if resume and trainer.checkpoint is not None and trainer.checkpoint.is_file():
            check_identity(folder, _as_of_now(read_identity(trainer.checkpoint)), identity)
            trainer.resume()
        else:
            clear_run(folder)
        data.copy_to(folder / "data")
    return network, trainer.fit()


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


def check_folder(data: Dataset, folder: Path) -> None:
    """Raise ArtifactError unless `folder` may be written: new, a run's, and not where `data` itself lies."""
    run_state(folder)
    if data.path is not None and data.path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder} holds the dataset to train on; choose another --out")


def check_identity(folder: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ArtifactError, naming what differs, unless a run in `folder` is the one that is wanted."""
    if saved == wanted:
        return
    changes = []
    earlier, now = by_short_name(saved.get("config", {})), by_short_name(wanted["config"])
    for key in {**earlier, **now}:  # another version of hllm may know other settings
        before, value = earlier.get(key), now.get(key)
        if before != value:
            changes.append(f"{key} {before!r} -> {value!r}")
    for key in ("dataset", "embeddings"):
        if saved.get(key) != wanted[key]:
            changes.append(f"{key} {str(saved.get(key))[:12]} -> {str(wanted[key])[:12]}")
    raise ArtifactError(
        f"{folder} holds another run ({'; '.join(changes)}); choose another --out, give the same settings, "
        "or start over with --overwrite"
    )


def run_state(folder: Path) -> str:
    """ "new", "unfinished" or "finished"; ArtifactError for a folder that is not a run's."""
    if not folder.exists():
        return "new"
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; choose a folder for the run with --out")
    if is_run(folder):
        return "finished"
    names = {entry.name for entry in folder.iterdir() if not entry.name.endswith(".tmp")}
    if not names:
        return "new"
    if names <= OURS | MADE_LATER and names & {"data", "checkpoints"} and _is_ours(folder):
        return "unfinished"
    raise ArtifactError(
        f"{folder} is not empty and holds no run ({', '.join(sorted(names)[:3])}); choose another --out"
    )


def _is_ours(folder: Path) -> bool:
    """Whether `data` and `checkpoints` hold only what an interrupted training leaves there. A folder
    called `data` could be anybody's, and starting over removes it."""
    data, checkpoints = folder / "data", folder / "checkpoints"
    if not all(path.is_dir() for path in (data, checkpoints) if path.exists()):
        return False
    within = {path.name for part in (data, checkpoints) if part.is_dir() for path in part.iterdir()}
    within = {name for name in within if not name.endswith(".tmp")}
    return within <= {"items.parquet", "users.parquet", "packed", "dataset.json", "last.safetensors"}


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a finished run."""
    if not (folder / "config.json").is_file():
        return False
    record = read_json(folder / "config.json")
    return isinstance(record, dict) and record.get("format") == FORMAT


def saved_identity(folder: Path) -> dict[str, Any] | None:
    """The identity of the run in `folder`, finished or not; None where no checkpoint tells it yet."""
    checkpoint = folder / "checkpoints" / "last.safetensors"
    if not is_run(folder):
        return _as_of_now(read_identity(checkpoint)) if checkpoint.is_file() else None
    record = read_json(folder / "config.json")
    key = (record.get("embeddings") or {}).get("key")
    saved = {"config": record["config"], "dataset": record["dataset"]["fingerprint"], "embeddings": key}
    return _as_of_now(saved)


def _as_of_now(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity with its configuration as this version writes it; unchanged where it cannot be read."""
    try:
        return identity | {"config": make_config(identity["config"]).model_dump()}
    except (ConfigError, KeyError):
        return identity


def clear_run(folder: Path) -> None:
    """Remove an earlier run's files, the mark of a finished one first."""
    for name in ("config.json", *sorted((OURS | MADE_LATER) - {"config.json"})):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_run(folder: Path, network: HLLM, config: Config, data: Dataset, record: RunRecord) -> None:
    """Write a finished run; `config.json`, its mark, last."""
    if _is_another(folder, config, data, record):
        check_folder(data, folder)
        clear_run(folder)  # metrics and report of another run would not be this one's
    (folder / "config.json").unlink(missing_ok=True)
    if data.path is None or data.path.resolve() != (folder / "data").resolve():
        data.copy_to(folder / "data")
    write_tensors(folder / "model.safetensors", network.state_dict())
    document = {"format": FORMAT, "version": VERSION, "config": config.model_dump()}
    document |= {"runtime": config.runtime.model_dump(), **asdict(record)}
    if network.source.whitening is not None and config.items.whiten == "whiten":
        document["whitening"] = {"rank": network.source.whitening.basis.shape[1], "epsilon": EPSILON}
    write_json(folder / "config.json", document)


def _is_another(folder: Path, config: Config, data: Dataset, record: RunRecord) -> bool:
    """Whether `folder` holds another run, finished or not."""
    state = run_state(folder)
    if state == "finished":
        return bool(read_json(folder / "config.json").get("created") != record.created)
    saved = saved_identity(folder)
    key = (record.embeddings or {}).get("key")
    own = {"config": config.model_dump(), "dataset": data.fingerprint, "embeddings": key}
    return saved is not None and saved != own


def read_run(folder: Path, device: torch.device) -> tuple[HLLM, Config, Dataset, RunRecord]:
    """Load a finished run; ArtifactError says what the folder is instead and what to do."""
    document = read_record(folder)
    config = make_config(document["config"] | {"runtime": document.get("runtime", {})})
    tensors, _ = read_tensors(folder / "model.safetensors")
    network = empty_network(config, {name: value.shape for name, value in tensors.items()})
    try:
        network.load_state_dict(tensors)
    except RuntimeError as err:
        raise ArtifactError(f"{folder}/model.safetensors does not fit its config.json; train again") from err
    network.source.refresh()
    record = RunRecord(**{key: document[key] for key in RunRecord.__dataclass_fields__ if key in document})
    return network.to(device).eval(), config, Dataset.load(folder / "data"), record


def read_record(folder: Path) -> dict[str, Any]:
    """The checked `config.json` of a run folder."""
    if not folder.exists():
        raise ArtifactError(f"no run at {folder}; make one with: hllm train DATASET --out {folder}")
    if not is_run(folder):
        if folder.is_dir() and (folder / "checkpoints" / "last.safetensors").is_file():
            raise ArtifactError(
                f"the training in {folder} is not finished; go on with the same hllm train command and --resume"
            )
        if (folder / "dataset.json").is_file():
            raise ArtifactError(
                f"{folder} is a dataset, not a run; train on it: hllm train {folder} --out RUN"
            )
        raise ArtifactError(f"{folder} is not a run folder; make one with: hllm train DATASET --out RUN")
    document: dict[str, Any] = read_json(folder / "config.json")
    if document.get("version") not in READABLE:
        raise ArtifactError(
            f"{folder} has run version {document.get('version')}, this hllm reads {' and '.join(map(str, READABLE))}"
        )
    return document
