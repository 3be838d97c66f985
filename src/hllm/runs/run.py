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
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hllm import hardware
from hllm.artifacts import locked, read_json, read_tensors, write_json, write_tensors
from hllm.config import Config, make_config
from hllm.data.batches.training import TrainLoader
from hllm.data.dataset import Dataset
from hllm.data.folder import own_names, remove_dataset
from hllm.errors import ArtifactError, DataError
from hllm.evaluate.evaluation import evaluate, parse_max_len
from hllm.items.source.whitening import EPSILON
from hllm.models.hllm import HLLM
from hllm.runs.build import build_network, empty_network
from hllm.train.checkpoint import read_identity
from hllm.train.trainer import FitResult, Trainer

if TYPE_CHECKING:
    from hllm.data.dataset import Histories
    from hllm.items.embed import ItemEmbeddings

FORMAT, VERSION = "hllm-run", 1
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
    data.verify()
    max_len = parse_max_len(config.max_len)
    histories = data.train_histories()
    check_trainable(data, histories)
    network = build_network(data, config, embeddings).to(device)
    loader = TrainLoader(
        histories, max_len, config.batch_tokens, config.seed, device, config.windows, config.passes
    )

    def validate(model: HLLM) -> dict[str, float]:
        metric_k = int(config.valid_metric.partition("@")[2])
        ks = sorted({10, metric_k})
        return evaluate(model, data, "validation", ks, max_len=max_len, bootstrap=0, details=False).values

    identity = identity_of(data, config, embeddings)
    trainer = Trainer(network, loader, config, validate, folder, identity, show)
    if folder is not None:
        check_folder(data, folder)
        if resume and trainer.checkpoint is not None and trainer.checkpoint.is_file():
            check_identity(folder, read_identity(trainer.checkpoint), identity)
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
    earlier = saved.get("config", {})
    for key in {**earlier, **wanted["config"]}:  # another version of hllm may know other settings
        before, value = earlier.get(key), wanted["config"].get(key)
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
    parts = [folder / "data", folder / "checkpoints"]
    names = own_names(folder) - {path.name for path in parts if path.is_dir() and not own_names(path)}
    if not names:
        return "new"
    if names & {"data", "checkpoints"} and _is_ours(folder):  # whatever else is there is left alone
        return "unfinished"
    raise ArtifactError(
        f"{folder} is not empty and holds no run ({', '.join(sorted(names)[:3])}); choose another --out"
    )


def _is_ours(folder: Path) -> bool:
    """Whether `data` and `checkpoints` are what an interrupted training leaves there. A folder called
    `data` could be anybody's: with interactions it is a dataset in its own right."""
    data, checkpoints = folder / "data", folder / "checkpoints"
    if not all(path.is_dir() for path in (data, checkpoints) if path.exists()):
        return False
    names = own_names(data) if data.exists() else set()
    if any(name.startswith("interactions") for name in names):
        return False
    return "packed" in names or (checkpoints / "last.safetensors").is_file()


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
        return read_identity(checkpoint) if checkpoint.is_file() else None
    record = read_json(folder / "config.json")
    key = (record.get("embeddings") or {}).get("key")
    return {"config": record["config"], "dataset": record["dataset"]["fingerprint"], "embeddings": key}


def clear_run(folder: Path) -> None:
    """Remove an earlier run's files, the mark of a finished one first; files of others stay."""
    for name in ("config.json", *sorted((OURS | MADE_LATER) - {"config.json", "data", "checkpoints"})):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    remove_dataset(folder / "data")
    (folder / "checkpoints" / "last.safetensors").unlink(missing_ok=True)
    with suppress(OSError):  # there is something of others in it
        (folder / "checkpoints").rmdir()


def write_run(folder: Path, network: HLLM, config: Config, data: Dataset, record: RunRecord) -> None:
    """Write a finished run; `config.json`, its mark, last."""
    run_state(folder)
    with locked(folder):
        if _is_another(folder, config, data, record):
            check_folder(data, folder)
            clear_run(folder)  # metrics and report of another run would not be this one's
        (folder / "config.json").unlink(missing_ok=True)
        if data.path is None or data.path.resolve() != (folder / "data").resolve():
            data.copy_to(folder / "data")
        write_tensors(folder / "model.safetensors", network.state_dict())
        document = {"format": FORMAT, "version": VERSION, "config": config.model_dump(), **asdict(record)}
        if network.source.whitening is not None and config.whiten == "whiten":
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
    config = make_config(document.pop("config"))
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
    if document.get("version") != VERSION:
        raise ArtifactError(f"{folder} has run version {document.get('version')}, this hllm reads {VERSION}")
    return document
