"""The checkpoint files of a training: their names, and whose they are. Read without torch, so that mistakes are
answered at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hllm.artifacts import read_metadata
from hllm.errors import ArtifactError

LAST = "last.safetensors"


def read_identity(path: Path) -> dict[str, Any]:
    """What a checkpoint's run was: its configuration and data. Only the header is read."""
    with advice():
        metadata = read_metadata(path)
        if "identity" not in metadata:
            raise ArtifactError(f"cannot read {path}: it is no checkpoint")
    identity: dict[str, Any] = metadata["identity"]
    return identity


@contextmanager
def advice() -> Iterator[None]:
    """Say what to do about a checkpoint that cannot be read."""
    try:
        yield
    except ArtifactError as err:
        raise ArtifactError(f"{err}; start the training over with the same command and --overwrite") from err


def best_path(folder: Path, epoch: int) -> Path:
    """Where the trained weights of `epoch` lie, if they are the best."""
    return folder / f"best-{epoch}.safetensors"


def drop_other_bests(folder: Path, epoch: int | None) -> None:
    """Remove best weights that the last checkpoint no longer names."""
    for path in folder.glob("best-*.safetensors"):
        if epoch is None or path != best_path(folder, epoch):
            path.unlink(missing_ok=True)
