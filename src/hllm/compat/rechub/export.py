"""A padded model as an ONNX file, called as torch-rechub's trainers call it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hllm.arguments import path as checked_path
from hllm.compat.rechub.states import InputError, SettingError, check_length
from hllm.errors import HLLMError
from hllm.export.onnx import OPSET, check_packages, program_of, run_onnx, write_onnx

INPUTS, OUTPUT = ("seq_tokens", "seq_time_diffs"), "output"
TOLERANCE = 1e-4  # relative to the largest score, at least 1


def export_onnx(
    model: nn.Module,
    output_path: str | Path,
    batch_size: int = 2,
    seq_length: int = 50,
    vocab_size: int | None = None,
    opset_version: int = OPSET,
    dynamic_batch: bool = True,
    device: str | torch.device | None = None,
    onnx_export_kwargs: Mapping[str, Any] | None = None,
) -> float | None:
    """Write `model` as ONNX; returns the largest difference of a score of the file, None without onnxruntime.

    Inputs `seq_tokens` int64 (B, L) and `seq_time_diffs` float32 (B, L), `output` float32 (B, L, V), as torch-rechub's
    files have them. With `dynamic_batch` any B, and any L up to the model's positions; else those of the example.
    Raises SettingError for sizes that cannot be, ConfigError without onnx, HLLMError where the file scores otherwise.
    """
    path = checked_path("output_path", output_path)
    check_packages(("onnx", "onnxscript"), "export_onnx")
    vocab_size = vocab_size or getattr(model, "vocab_size", None) or getattr(model, "item_num", None)
    if vocab_size is None:
        raise InputError(f"{type(model).__name__} has no vocab_size: give it, export_onnx(..., vocab_size=N)")
    if foreign := sorted(set(onnx_export_kwargs or {}) - {"dynamo"}):
        raise SettingError(
            f"onnx_export_kwargs has {', '.join(foreign)}: nothing is passed on to torch.onnx.export"
        )
    if opset_version < OPSET:
        warnings.warn(f"opset_version={opset_version}: the file has opset {OPSET}", stacklevel=3)
    longest = int(getattr(model, "max_seq_len", 0)) or 1 << 16
    length = min(seq_length, longest) if dynamic_batch else seq_length
    check_length(length, longest)
    model = model.to("cpu" if device is None else device).eval()
    at = next(model.parameters()).device

    def example(users: int, events: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = torch.Generator().manual_seed(users * events)
        tokens = torch.randint(0, int(vocab_size), (users, events), generator=draw)
        times = torch.rand(users, events, generator=draw) * 1e7
        return tokens.to(at), times.to(at)

    batch, events = torch.export.Dim("batch_size"), torch.export.Dim("seq_length", max=longest)
    axes = {0: batch, 1: events} if dynamic_batch else {}
    # An axis of size 1 in the example would be written as one that always is.
    sizes = (max(batch_size, 2), max(length, 2)) if dynamic_batch else (batch_size, length)
    shapes = (axes, axes)
    write_onnx(program_of(model, example(*sizes), shapes), path, INPUTS, OUTPUT, max(opset_version, OPSET))
    run = run_onnx(path)
    if run is None:
        return None
    tokens, times = example(sizes[0] + 1, max(1, length // 2)) if dynamic_batch else example(*sizes)
    with torch.no_grad():
        wanted = model(tokens, times).float().cpu().numpy()
    found = run(tokens.cpu().numpy(), times.cpu().numpy())
    difference = float(np.abs(found - wanted).max()) / max(1.0, float(np.abs(wanted).max()))
    if not difference <= TOLERANCE:
        raise HLLMError(
            f"{path} gives scores that differ by {difference:.1e} of the largest, more than {TOLERANCE:.0e}"
        )
    return difference
