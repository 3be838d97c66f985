"""All that a run needs to go on to the same bits, in two files.

    checkpoints/last.safetensors     what is trained, optimiser, weight average, random state, data position, history
    checkpoints/best-<epoch>.safetensors   the trained weights of the best validation so far

`last` is written to a temporary name and renamed, so its parts can never disagree, and it names the epoch of the best
weights, which are written before it and removed after a later `last` names others. What is frozen (the text table)
is made anew from the dataset and its embeddings. Its header tells whose run it is, and is read without the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hllm.artifacts import read_tensors, write_tensors
from hllm.errors import ArtifactError
from hllm.items.source.live import LiveText
from hllm.ranks import ALONE, Ranks
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
    nearest: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Write everything but the best weights, atomically. `identity`: what a resumed run must share.

    nearest  what this epoch's hard negatives are drawn from, by weights that are gone within it
    ranks    all of which must ask; the first writes, whole tensors: any number of ranks goes on from them

    Of a finished training nothing goes on, so that only where it ended is written.
    """
    state = {} if progress.finished else _state(network, optimizer, average, ranks)
    if nearest is not None and not progress.finished:
        state["nearest"] = nearest
    metadata = {
        "progress": asdict(progress),
        "identity": identity,
        "ema_steps": average.steps if average is not None else 0,
    }
    if ranks.first:
        write_tensors(path, state, metadata)


def _state(
    network: nn.Module, optimizer: Optimizer, average: WeightAverage | None, ranks: Ranks
) -> dict[str, Tensor]:
    """The tensors that the next step depends on, by name; of other ranks than the first: none."""
    tensors = {}
    for name, value in _named_state(network, optimizer, average, ranks):
        if ranks.first:
            # What is whole here is a view of the weights, or was gathered for this and goes to the CPU.
            tensors[name] = value.clone() if value.ndim == 0 else value.cpu() if ranks.many else value
    return tensors


def _named_state(
    network: nn.Module, optimizer: Optimizer, average: WeightAverage | None, ranks: Ranks
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, whole, in the same order on every rank."""
    names = {p: name for name, p in network.named_parameters()}
    for name, parameter in trained(network, optimizer).items():
        yield f"model.{name}", optimizer.whole(parameter)
    for parameter in optimizer.parameters:
        for key, value in optimizer.state_of(parameter).items():
            yield f"optim.{key}.{names[parameter]}", value
    for i, part in enumerate(optimizer.lazy):
        yield from ((f"lazy.{i}.{key}", value) for key, value in part.rows.state_dict().items())
    yield from ((f"fitted.{name}", value) for name, value in fitted(network).items())
    if average is not None:
        for parameter, value in zip(average.parameters, average.average, strict=True):
            yield f"ema.{names[parameter]}", value
    for rank, states in enumerate(ranks.gather(_random_states(next(network.parameters()).device))):
        suffix = f".{rank}" if rank else ""
        yield from ((f"rng.{kind}{suffix}", value) for kind, value in states.items())


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def load_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: Optimizer,
    average: WeightAverage | None,
    ranks: Ranks = ALONE,
) -> tuple[Progress, Tensor | None]:
    """Restore everything but the best weights, in place; where training stands, and `nearest` of `save_checkpoint`.

    The first rank reads, and tells the others. Raises ArtifactError where the model is another one.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    if ranks.first:
        with advice():
            tensors, metadata = read_tensors(path)
    metadata = ranks.agree(metadata)
    progress = Progress(**metadata["progress"])
    if progress.finished:
        return progress, None
    device = next(network.parameters()).device
    parameters = trained(network, optimizer)
    given = {n[6:]: tuple(t.shape) for n, t in tensors.items() if n.startswith("model.")}
    check_shapes(path, {n: tuple(optimizer.shape(p)) for n, p in parameters.items()}, ranks.agree(given))
    rest: dict[str, Tensor] = {}
    for name, value in ranks.send(tensors, device):
        kind, _, of = name.partition(".")
        if kind == "model":
            with torch.no_grad():
                optimizer.put(parameters[of], value)
        elif kind == "optim":
            key, _, of = of.partition(".")
            optimizer.put_state(parameters[of], key, value)
        else:
            rest[name] = value.cpu() if kind == "rng" else value

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) :]: v for k, v in rest.items() if k.startswith(prefix)}

    for name, value in fitted(network).items():
        value.copy_(part("fitted.")[name])
    for i, lazy in enumerate(optimizer.lazy):
        lazy.rows.load_state_dict(part(f"lazy.{i}."))
    if average is not None:
        saved, names = part("ema."), {p: name for name, p in parameters.items()}
        average.average = [saved[names[p]] for p in average.parameters]
        average.steps = metadata["ema_steps"]
    _set_random_states(part("rng."), progress, ranks, device)
    return progress, rest.get("nearest")


def _set_random_states(
    states: dict[str, Tensor], progress: Progress, ranks: Ranks, device: torch.device
) -> None:
    """Each rank's own; one that there was not before draws numbers of its own from here on."""
    suffix = f".{ranks.rank}" if ranks.rank else ""
    if f"cpu{suffix}" not in states:
        torch.manual_seed(hash((progress.step, ranks.rank)) % 2**63)
        return
    torch.set_rng_state(states[f"cpu{suffix}"])
    if device.type == "cuda" and f"cuda{suffix}" in states:
        torch.cuda.set_rng_state(states[f"cuda{suffix}"], device)


def check_shapes(path: Path, own: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> None:
    """ArtifactError, naming a parameter, unless the shapes by name are the same."""
    for name in sorted(own.keys() ^ given.keys()):
        raise ArtifactError(f"{path} belongs to another model: {name} is in only one of the two")
    for name, shape in own.items():
        if shape != given[name]:
            raise ArtifactError(
                f"{path} belongs to another model: {name} is {given[name]} there and {shape} here"
            )


@torch.no_grad()
def load_trained(
    path: Path, parameters: dict[str, nn.Parameter], values: dict[str, Tensor] | None, ranks: Ranks = ALONE
) -> None:
    """Copy the first rank's `values` into the parameters of the same names; ArtifactError unless all fit."""
    given = ranks.agree({name: tuple(value.shape) for name, value in (values or {}).items()})
    check_shapes(path, {name: tuple(p.shape) for name, p in parameters.items()}, given)
    device = next(iter(parameters.values())).device if parameters else torch.device("cpu")
    for name, value in ranks.send(values, device):
        parameters[name].copy_(value)
