"""The machine: which device to use, what it is good at, and how to describe it in a record."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hllm.errors import DeviceError, unknown

if TYPE_CHECKING:
    import torch

RECORDED_PACKAGES = ("hllm", "torch", "transformers", "tokenizers", "safetensors", "numpy", "polars")
GPU_THREADS = 4  # of a process whose work a GPU does
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 server, x86 with AMX, Arm


def is_out_of_memory(err: BaseException) -> bool:
    """Whether an exception says that the GPU's memory, or the machine's, is used up."""
    import torch

    if isinstance(err, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(err)
    return isinstance(err, RuntimeError) and (
        "out of memory" in text.lower() or "can't allocate memory" in text or "not enough memory" in text
    )


def release_memory() -> None:
    """Give back what is no longer used, the GPU's too."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory(device: torch.device | None) -> int | None:
    """Bytes that this process held at most: of the GPU `device`, else of the machine; None where no one counts them."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_device(name: object) -> str:
    """The name of a device as text; DeviceError unless one could be called so. Needs no torch."""
    text = str(name)[:100]
    if re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", text) is None:
        raise DeviceError(unknown("device", text, ("auto", "cpu", "cuda", "cuda:N")))
    return text


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Return the torch device called `name`: "auto", "cpu", "cuda" or "cuda:N".

    "auto" is the current GPU where there is one, else the CPU. Raises DeviceError with the
    valid choices for an unknown name and for a GPU that is not there.
    """
    text = check_device(name)
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda" if count else "cpu")
    choices = ["auto", "cpu"] + (["cuda"] if count else []) + [f"cuda:{i}" for i in range(count)]
    if text in choices:
        return torch.device(text)
    if text.partition(":")[0] == "cuda" and not count:
        reason = "this torch build has no CUDA" if torch.version.cuda is None else "torch finds no GPU here"
        raise DeviceError(f"device {text!r} is not available: {reason}; valid: {', '.join(choices)}")
    raise DeviceError(unknown("device", text, choices))


def bf16_is_fast(device: torch.device | str) -> bool:
    """Whether `device` has instructions for bfloat16; elsewhere it is slower than float32."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and bool(_BF16_FLAGS & _cpu_info()[1])


@contextmanager
def cpu_products(precision: str) -> Iterator[None]:
    """Matrix products of float32 on a CPU, where oneDNN makes them: "bf16" rounds their operands, "ieee" does not."""
    import torch

    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before


def cpu_count() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_of_one(processes: int) -> int:
    """Threads for each of `processes` that share this machine's processors, so that none waits for another's."""
    return max(1, cpu_count() // max(1, processes))


@contextmanager
def few_threads(device: torch.device) -> Iterator[None]:
    """At most GPU_THREADS of torch's threads on the processor while a GPU does the work.

    torch starts as many as there are processors. A step on a GPU has little for them to do, and where several
    trainings run side by side they wait for each other. OMP_NUM_THREADS, as torchrun sets it too, is obeyed, and a
    number that is lower already stays.
    """
    import torch

    before = torch.get_num_threads()
    fewer = min(before, GPU_THREADS, threads_of_one(torch.cuda.device_count()))
    if device.type != "cuda" or os.environ.get("OMP_NUM_THREADS"):
        fewer = before
    torch.set_num_threads(fewer)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_hardware() -> dict[str, Any]:
    """The machine for a run record: `cpu`, `cores`, `memory_gib`, `gpus`, `system`. JSON-ready."""
    import torch

    gpus = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(i)
        gpus.append({"name": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)})
    return {
        "cpu": _cpu_info()[0],
        "cores": cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result, without importing them."""
    return dict(_versions())


@functools.cache  # 20 ms of reading, and nothing is installed while this runs
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # an optional package, or hllm run from a source tree
    return versions


def command_line() -> str:
    """The command of this process, quoted for a shell, with the program's folder left out."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if program == "__main__.py":
        program = "hllm"  # python -m hllm
    return shlex.join([program, *sys.argv[1:]])


@functools.cache
def _cpu_info() -> tuple[str, frozenset[str]]:
    """Name and instruction flags of the first processor; flags are empty where unknown."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return name, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
        if not line.strip():
            break
    return name, flags


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):  # no sysconf on Windows
        return None
