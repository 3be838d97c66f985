"""Training that starts from the weights of an earlier run, most of all a live one from a frozen one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hllm.artifacts import read_tensors
from hllm.errors import ConfigError
from hllm.runs.folder import read_record

if TYPE_CHECKING:
    from hllm.data.dataset import Dataset
    from hllm.models.hllm import Network

# What a frozen run holds of item texts; a live source computes it.
_COMPUTED = ("source.parts.text.table", "source.parts.text.has_text")


@torch.no_grad()
def start_from(network: Network, run: Path, data: Dataset) -> None:
    """Copy the weights of `run` into `network`: user model, scorer, adapter, whitening and ids.

    The item LLM itself is the one that `network` has. Raises ConfigError, naming what differs, for a run of
    another dataset or of a model of another shape.
    """
    document = read_record(run)
    if document["dataset"]["fingerprint"] != data.fingerprint:
        raise ConfigError(
            f"init_from={run} was trained on {document['dataset']['name']} "
            f"{document['dataset']['fingerprint'][:12]}, not on {data.meta['name']} {data.fingerprint[:12]}"
        )
    saved, _ = read_tensors(run / "model.safetensors")
    own = network.state_dict()
    wanted = [name for name in own if not name.startswith("source.parts.text.encoder.")]
    wanted = [name for name in wanted if not name.startswith("source.parts.text.text_")]
    for name in sorted({*wanted, *saved} - {*_COMPUTED}):
        shapes = [tuple(part[name].shape) if name in part else None for part in (saved, own)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"init_from={run} is another model: {name} is {shapes[0] or 'absent'} there and "
                f"{shapes[1] or 'absent'} here; use its preset and settings, and change only how items are trained"
            )
        own[name].copy_(saved[name])
