"""Modules as ONNX files: written through `torch.export`, run again by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hllm.artifacts import atomic
from hllm.errors import ConfigError

OPSET = 18  # the first that torch's exporter writes

# Arrays in the order of the file's inputs -> its first output.
Run = Callable[..., np.ndarray]


def check_packages(packages: Sequence[str], what: str, extra: str = "export") -> None:
    """Raise ConfigError naming what is not installed of `packages`, which `what` needs."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}: pip install 'hllm[{extra}]'")


def program_of(
    module: nn.Module, example: tuple[Any, ...], shapes: dict[str, Any] | tuple[Any, ...]
) -> torch.export.ExportedProgram:
    """`module` as a program for inputs like `example`, whose axes in `shapes` may have any size."""
    with torch.no_grad():
        return torch.export.export(module, example, dynamic_shapes=shapes)


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, inputs: Sequence[str], output: str, opset: int = OPSET
) -> None:
    """Write a program as one file, weights included; ConfigError without the packages that it takes."""
    check_packages(("onnx", "onnxscript"), path.name)
    names: dict[str, Any] = {"input_names": list(inputs), "output_names": [output]}
    with atomic(path) as temporary, _quiet():
        made = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset, **names)
        assert made is not None
        made.save(str(temporary), external_data=False)


def quantize_onnx(path: Path) -> None:
    """Weights of matrix products in a file become 8-bit integers, with a scale for each column."""
    check_packages(("onnx", "onnxruntime"), "--quantize int8")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with atomic(path) as temporary, _quiet():
        quantize_dynamic(path, temporary, per_channel=True, weight_type=QuantType.QInt8)


def run_onnx(path: Path) -> Run | None:
    """How to run a file on the CPU; None without onnxruntime."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*arrays: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, dict(zip(names, arrays, strict=True)))[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on packages that nothing here needs, and on its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
