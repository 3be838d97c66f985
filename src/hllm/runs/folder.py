"""What a run folder is.

config.json          what the run is; written last, so that its presence means "finished"
model.safetensors    weights of the best validation epoch
item_llm/            the trained item LLM, where there is one: an ordinary transformers folder
data/                histories, splits and catalogue: all that recommending needs
history.jsonl        one line an epoch
parallel.json        how several processes shared the training, where they did
checkpoints/         what an interrupted training goes on from
metrics.json, ranks/, index/, report.html, examples.json, README.md   results, written later
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.artifacts import disk_errors, read_document, read_json
from hllm.config import make_config
from hllm.data.folder import own_names, remove_dataset
from hllm.errors import ArtifactError, ConfigError
from hllm.items.encoders.hub import ITEM_LLM
from hllm.train.files import LAST, drop_other_bests, read_identity

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset

PARALLEL = "parallel.json"
FORMAT, VERSION = "hllm-run", 2
OURS = {"config.json", "model.safetensors", "data", "history.jsonl", "checkpoints", ITEM_LLM, PARALLEL}
AGAIN = "train again, with --overwrite"
MADE_LATER = {"metrics.json", "ranks", "index", "report.html", "examples.json", "README.md"}


def check_folder(data: Dataset, folder: Path) -> None:
    """Raise ArtifactError unless `folder` may be written: new, a run's, and not where `data` itself lies."""
    run_state(folder)
    if data.path is not None and data.path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder} holds the dataset to train on; choose another --out")


def run_state(folder: Path) -> str:
    """ "new", "unfinished" or "finished"; ArtifactError for a folder that is not a run's."""
    with disk_errors(f"use {folder}"):
        if not folder.exists():
            if folder.is_symlink():
                raise ArtifactError(f"{folder} is a link that leads nowhere; choose another --out")
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
    return "packed" in names or (checkpoints / LAST).is_file()


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a finished run."""
    if not (folder / "config.json").is_file():
        return False
    record = read_json(folder / "config.json")
    return isinstance(record, dict) and record.get("format") == FORMAT


def saved_identity(folder: Path) -> dict[str, Any] | None:
    """The identity of the run in `folder`, finished or not; None where no checkpoint tells it yet."""
    checkpoint = folder / "checkpoints" / LAST
    if not is_run(folder):
        return as_of_now(read_identity(checkpoint)) if checkpoint.is_file() else None
    record = read_json(folder / "config.json")
    key = (record.get("embeddings") or {}).get("key")
    saved = {"config": record["config"], "dataset": record["dataset"]["fingerprint"], "embeddings": key}
    return as_of_now(saved)


def as_of_now(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity with its configuration as this version writes it; unchanged where it cannot be read."""
    try:
        config = make_config(identity["config"])
        if config.items.id_embedding and config.training.id_updates is None:  # hllm knew no other way then
            config = config.model_copy(update={"id_updates": "dense"})
        return identity | {"config": config.model_dump()}
    except (ConfigError, KeyError):
        return identity


def clear_run(folder: Path) -> None:
    """Remove an earlier run's files, the mark of a finished one first; files of others stay."""
    for name in ("config.json", *sorted((OURS | MADE_LATER) - {"config.json", "data", "checkpoints"})):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    remove_dataset(folder / "data")
    (folder / "checkpoints" / LAST).unlink(missing_ok=True)
    drop_other_bests(folder / "checkpoints", None)
    with suppress(OSError):  # there is something of others in it
        (folder / "checkpoints").rmdir()


def read_record(folder: Path) -> dict[str, Any]:
    """The checked `config.json` of a run folder."""
    if not folder.exists():
        raise ArtifactError(f"no run at {folder}; make one with: hllm train DATASET --out {folder}")
    if not is_run(folder):
        if folder.is_dir() and (folder / "checkpoints" / LAST).is_file():
            raise ArtifactError(
                f"the training in {folder} is not finished; go on with the same hllm train command"
            )
        if (folder / "dataset.json").is_file():
            raise ArtifactError(
                f"{folder} is a dataset, not a run; train on it: hllm train {folder} --out RUN"
            )
        raise ArtifactError(f"{folder} is not a run folder; make one with: hllm train DATASET --out RUN")
    document: dict[str, Any] = read_json(folder / "config.json")
    if document.get("version") not in range(1, VERSION + 1):
        raise ArtifactError(
            f"{folder} has run version {document.get('version')}, this hllm reads up to {VERSION}"
        )
    return read_document(folder / "config.json", AGAIN)
