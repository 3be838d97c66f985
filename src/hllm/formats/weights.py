"""Files of weights: which of a folder's are read, and their tensors, mapped from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm import artifacts
from hllm.errors import ArtifactError, ConfigError
from hllm.formats.pickles import load_torch

if TYPE_CHECKING:
    from torch import Tensor

# Of several formats in one folder transformers reads the first of these, and nothing of the others.
_CHOICE = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def weight_files(path: Path) -> list[str]:
    """Names of the files that transformers reads the weights from, there or not."""
    chosen = next((name for name in _CHOICE if (path / name).is_file()), None)
    if chosen is None:  # under a name of their own, which the configuration gives (`transformers_weights`)
        return sorted(p.name for p in path.glob("*.safetensors")) or [_CHOICE[0]]
    if not chosen.endswith(".index.json"):
        return [chosen]
    index = artifacts.read_json(path / chosen)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not shards or not isinstance(shards, dict):
        raise ConfigError(f"{path / chosen} does not list the files of the weights; bring it again")
    return sorted({str(name) for name in shards.values()})


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of the folder's weights files, by name. Raises ArtifactError for what cannot be read."""
    state: dict[str, Tensor] = {}
    for name in weight_files(path):
        state |= read_file(path / name)
    return state


def read_file(path: Path) -> Any:
    """What one file of weights holds: safetensors' tensors, or whatever `torch.save` was given."""
    if path.suffix != ".safetensors":
        return load_torch(path)
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as err:  # damaged files fail in many ways
        raise ArtifactError(f"cannot read {path}: {' '.join(str(err).split())[:200]}") from err
