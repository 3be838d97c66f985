"""All that a run needs to go on to the same bits, in two files.

    checkpoints/last.safetensors     what is trained, optimiser, weight average, random state, data position, history
    checkpoints/best-<epoch>.safetensors   the trained weights of the best validation so far

`last` is written to a temporary name and renamed, so its parts can never disagree, and it names the epoch of the best
weights, which are written before it and removed after a later `last` names others. What is frozen (the text table)
is made anew from the dataset and its embeddings. Its header tells whose run it is, and is read without the tensors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hllm.artifacts import read_tensors, write_tensors
from hllm.errors import ArtifactError
from hllm.items.source.live import LiveText
from hllm.train.files import advice
from hllm.train.optim import Optimizer, WeightAverage


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


def trained(network: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, those updated lazily included."""
    lazy = {id(part.weight) for part in optimizer.lazy}
    return {name: p for name, p in network.named_parameters() if p.requires_grad or id(p) in lazy}


def fitted(network: nn.Module) -> dict[str, Tensor]:
    """What was fitted on the first vectors of a live item LLM: later it could not be fitted again."""
    live = (f"{name}.whitening." for name, part in network.named_modules() if isinstance(part, LiveText))
    prefixes = tuple(live)
    return {name: b for name, b in network.named_buffers() if prefixes and name.startswith(prefixes)}


def save_checkpoint(
    path: Path,
    progress: Progress,
    network: nn.Module,
    optimizer: Optimizer,
    average: WeightAverage | None,
    identity: dict[str, Any],
) -> None:
    """Write everything but the best weights, atomically. `identity`: what a resumed run must share.

    Of a finished training nothing goes on, so that only where it ended is written.
    """
    state = {} if progress.finished else _state(network, optimizer, average)
    metadata = {
        "progress": asdict(progress),
        "identity": identity,
        "ema_steps": average.steps if average is not None else 0,
    }
    write_tensors(path, state, metadata)


def _state(network: nn.Module, optimizer: Optimizer, average: WeightAverage | None) -> dict[str, Tensor]:
    """The tensors that the next step depends on, by name."""
    names = {p: name for name, p in network.named_parameters()}
    tensors = {f"model.{name}": value.detach() for name, value in trained(network, optimizer).items()}
    for parameter in optimizer.parameters:
        for key, value in optimizer.dense.state.get(parameter, {}).items():
            tensors[f"optim.{key}.{names[parameter]}"] = torch.as_tensor(
                value
            )  # 8-bit states count in integers
    for i, part in enumerate(optimizer.lazy):
        tensors |= {f"lazy.{i}.{key}": value for key, value in part.rows.state_dict().items()}
    tensors |= {f"fitted.{name}": value for name, value in fitted(network).items()}
    if average is not None:
        pairs = zip(average.parameters, average.average, strict=True)
        tensors |= {f"ema.{names[parameter]}": value for parameter, value in pairs}
    tensors["rng.cpu"] = torch.get_rng_state()
    device = next(network.parameters()).device
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    return {k: v.clone() if v.ndim == 0 else v for k, v in tensors.items()}


def load_checkpoint(
    path: Path, network: nn.Module, optimizer: Optimizer, average: WeightAverage | None
) -> Progress:
    """Restore everything but the best weights, in place. Raises ArtifactError where the model is another one."""
    with advice():
        tensors, metadata = read_tensors(path)
    progress = Progress(**metadata["progress"])
    if progress.finished:
        return progress
    device = next(network.parameters()).device
    parameters = trained(network, optimizer)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

    load_trained(path, parameters, part("model."))
    for key in {name.split(".", 1)[0] for name in part("optim.")}:
        for name, value in part(f"optim.{key}.").items():
            # AdamW's fused form wants its step counters beside the weights.
            counts = key == "step" and not value.is_floating_point()
            optimizer.dense.state[parameters[name]][key] = int(value) if counts else value.to(device)
    for name, value in fitted(network).items():
        value.copy_(part("fitted.")[name])
    for i, lazy in enumerate(optimizer.lazy):
        lazy.rows.load_state_dict({key: value.to(device) for key, value in part(f"lazy.{i}.").items()})
    if average is not None:
        saved = part("ema.")
        names = {p: name for name, p in parameters.items()}
        average.average = [saved[names[p]].to(device) for p in average.parameters]
        average.steps = metadata["ema_steps"]
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    return progress


@torch.no_grad()
def load_trained(path: Path, parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    """Copy `values` into the parameters of the same names; ArtifactError, naming one, unless all fit."""
    for name in sorted(parameters.keys() ^ values.keys()):
        raise ArtifactError(f"{path} belongs to another model: {name} is in only one of the two")
    for name, parameter in parameters.items():
        if parameter.shape != values[name].shape:
            raise ArtifactError(
                f"{path} belongs to another model: {name} is {tuple(values[name].shape)} there and "
                f"{tuple(parameter.shape)} here"
            )
        parameter.copy_(values[name])
