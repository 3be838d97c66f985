"""What a run is: its record, and the identity that two trainings must share."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm import hardware
from hllm.config import by_short_name
from hllm.errors import ArtifactError
from hllm.runs.settle import settled
from hllm.train.trainer import FitResult

if TYPE_CHECKING:
    from hllm.config import Config
    from hllm.data.dataset import Dataset
    from hllm.items.embeddings import ItemEmbeddings


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
    # Updates since the first training, oldest first.
    lineage: list[dict[str, Any]] = field(default_factory=list)

    @property
    def imported(self) -> str | None:
        """Of which file the weights are, where hllm has not trained them."""
        return self.lineage[0].get("imported") if self.lineage and not self.best else None

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
    return {"config": settled(data, config).model_dump(), "dataset": data.fingerprint, "embeddings": key}


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
