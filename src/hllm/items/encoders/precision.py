"""Which precision an item LLM runs in on this machine, measured once.

On processors with bf16 instructions bf16 is two to four times as fast as float32; on those without
them it can be fifty times slower, so the measurement starts with something tiny.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm import artifacts, hardware
from hllm.arguments import one_of
from hllm.errors import ArtifactError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_ALIASES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # torch's names
FILE = "precision.json"  # in the embeddings folder: the choice of each kind of processor met so far
_SIZES = (64, 512, 1536)  # rows of the tiny, small and layer-sized product that are timed in turn
_TURNS = 4
_WORTH = 1.2  # bf16 must be this much faster to be worth its rounding


def check_precision(precision: str) -> str:
    """`precision` by its short name, or ConfigError with the valid ones."""
    known = isinstance(precision, str) and precision in _ALIASES
    return one_of("precision", _ALIASES[precision] if known else precision, ("auto", *PRECISIONS))


def auto_precision(device: torch.device, folder: Path | None) -> str:
    """The precision for `device`: bf16 on a GPU that has it, on a CPU what a measurement says.

    The measurement is recorded in `folder` (None: not at all), so that a rerun makes the same choice, and with it the
    same embeddings.
    """
    if device.type == "cuda":
        return "bf16" if hardware.bf16_is_fast(device) else "fp32"
    if device.type != "cpu":
        return "fp32"
    path, processor = folder and folder / FILE, str(hardware.describe_hardware()["cpu"])
    known = _measured(path) if path else {}
    if processor not in known:
        speedup = measure_bf16()
        known[processor] = {
            "precision": "bf16" if speedup >= _WORTH else "fp32",
            "bf16_speedup": round(speedup, 2),
        }
        if path:
            artifacts.write_json(path, known)
    return str(known[processor]["precision"])


def _measured(path: Path) -> dict[str, Any]:
    """What is recorded in `path`, by processor; a file that was damaged is measured anew."""
    try:
        found = artifacts.read_json(path) if path.is_file() else {}
    except ArtifactError:
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: e for key, e in entries if isinstance(e, dict) and e.get("precision") in PRECISIONS}


def measure_bf16() -> float:
    """How many times as fast as float32 bf16 is here, in matrix products the size of a small layer's.

    Stops early where bf16 is hopeless; takes well under a second otherwise.
    """
    import torch

    speedup, generator = 1.0, torch.Generator().manual_seed(0)
    for rows in _SIZES:
        x, w = (torch.randn(n, 576, generator=generator) for n in (rows, 1536))
        pairs = {"fp32": (x, w), "bf16": (x.bfloat16(), w.bfloat16())}
        best = dict.fromkeys(pairs, float("inf"))
        for _ in range(_TURNS):  # in turns, so that a machine busy for a moment slows both
            for name, pair in pairs.items():
                best[name] = min(best[name], _best_time(*pair))
        speedup = best["fp32"] / best["bf16"]
        if speedup < 0.5:
            break
    return speedup


def _best_time(x: torch.Tensor, w: torch.Tensor, repeats: int = 2) -> float:
    import torch

    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        torch.nn.functional.linear(x, w)
        times.append(time.perf_counter() - start)
    return min(times)
