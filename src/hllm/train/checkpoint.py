"""One file holds all that a run needs to go on to the same bits: `checkpoints/last.safetensors`.

Weights, optimiser, weight average, best weights so far, random state, data position and history
are written together and renamed into place at once, so they can never disagree.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hllm.artifacts import read_tensors, write_tensors
from hllm.errors import ArtifactError
from hllm.train.optim import WeightAverage


@dataclass
class Progress:
    """Where training stands. `epoch` and `step_in_epoch` are the next batch to take."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0  # of the steps taken in this epoch
    best_epoch: int | None = None
    best_value: float | None = None
    stale_epochs: int = 0  # validations since the best one
    flat_validations: int = 0  # in a row, with all user vectors in one direction
    finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    progress: Progress,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    best: dict[str, Tensor] | None,
    identity: dict[str, Any],
) -> None:
    """Write everything atomically. `identity` is what a resumed run must share (config, dataset)."""
    tensors = {f"model.{name}": value for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optim.{key}.{name}"] = value
    if average is not None:
        names = [name for name, _ in network.named_parameters()]
        tensors |= {f"ema.{name}": value for name, value in zip(names, average.average, strict=True)}
    if best is not None:
        tensors |= {f"best.{name}": value for name, value in best.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    metadata = {
        "progress": asdict(progress),
        "identity": identity,
        "ema_steps": average.steps if average is not None else 0,
    }
    write_tensors(path, {k: v.clone() if v.ndim == 0 else v for k, v in tensors.items()}, metadata)


def read_identity(path: Path) -> dict[str, Any]:
    """What a checkpoint's run was: its configuration and data."""
    _, metadata = _read(path)
    identity: dict[str, Any] = metadata["identity"]
    return identity


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, metadata = read_tensors(path)
        if "identity" not in metadata:
            raise ArtifactError(f"cannot read {path}: it is no checkpoint")
        return tensors, metadata
    except ArtifactError as err:
        raise ArtifactError(f"{err}; start the training over with the same command and --overwrite") from err


def load_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Restore everything in place; returns the progress and the best weights so far."""
    tensors, metadata = _read(path)
    device = next(network.parameters()).device

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        network.load_state_dict(part("model."))
    except RuntimeError as err:
        raise ArtifactError(f"{path} belongs to another model: {str(err).splitlines()[-1].strip()}") from err
    for key in {name.split(".", 1)[0] for name in part("optim.")}:
        values = part(f"optim.{key}.")
        for name, parameter in network.named_parameters():
            if name in values:
                # AdamW's fused form wants its step counters beside the weights.
                optimizer.state[parameter][key] = values[name].to(device)
    if average is not None:
        saved = part("ema.")
        average.average = [saved[name].to(device) for name, _ in network.named_parameters()]
        average.steps = metadata["ema_steps"]
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    best = {k: v.to(device) for k, v in part("best.").items()}
    return Progress(**metadata["progress"]), best or None
