"""The checks that the document lists, made before the work: they warn or stop, and say what to type.

GPU, its memory against what model and batch need, the item LLM's place on this machine, the
embeddings file, the data files. Nothing here waits for an answer on a terminal.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hllm import hardware
from hllm.errors import ArtifactError, DeviceError
from hllm.formats.rechub import embeddings_path
from hllm.items.encoders.names import CONTROLS, SHORT_NAMES, canonical, is_local
from hllm.runs.auto_batch import GIB, memory_warning
from rechub_scripts.entry import say, warn
from rechub_scripts.families import Family

ADVICE = "a smaller --max_seq_len, a smaller --model_type, or --device cpu"  # where memory runs out
# Memory that encoding takes, from the document where it has it, else weights in 16 bits and a half more.
ENCODING_GIB = {
    "tinyllama": 3.0,
    "baichuan2": 16.0,
    "smollm2-135m": 1.0,
    "smollm2-360m": 1.5,
    "smollm2-1.7b": 5.0,
    "llama-3.2-1b": 4.0,
    "qwen3-0.6b": 2.0,
    "qwen3-embedding-0.6b": 2.0,
}


def check_device(name: str, work: str) -> torch.device:
    """The device `name`; says which it is. DeviceError, with what to type, where there is no such GPU."""
    try:
        device = hardware.pick_device(name)
    except DeviceError as err:
        raise DeviceError(f"{err}. To {work} without a GPU, which is slow, type --device cpu") from err
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        say(f"GPU: {properties.name}, {properties.total_memory / GIB:.1f} GiB")
        return device
    there = "; there is a GPU here: --device cuda" if torch.cuda.is_available() else ""
    warn(
        f"{work} runs on the CPU ({hardware.cpu_count()} cores), 10 to 100 times slower than on a GPU{there}"
    )
    return device


def check_memory(device: torch.device, needed: float | None, advice: str) -> None:
    """Warn where the GPU's free memory is below `needed` bytes (None: unknown)."""
    if device.type != "cuda" or needed is None:
        return
    if message := memory_warning(device, needed, advice):
        warn(message)
    else:
        say(f"GPU memory: about {needed / GIB:.1f} GiB needed, which is free")


def encoding_memory(model_type: str) -> float | None:
    """Bytes that encoding with an item LLM takes on a GPU; None where nothing is known."""
    name = canonical(model_type)
    if name in ENCODING_GIB:
        return ENCODING_GIB[name] * GIB
    if is_local(name) and Path(name).is_dir():
        weights = [p for ending in ("safetensors", "bin", "gguf") for p in Path(name).glob(f"*.{ending}")]
        return 1.5 * sum(p.stat().st_size for p in weights) or None
    return None


def check_model(model_type: str) -> str:
    """Say where the item LLM lies, or that it will be downloaded, and from where; its canonical name."""
    name = canonical(model_type)
    if name in CONTROLS:
        say(f"item vectors: {name}, without a language model")
    elif is_local(name):
        say(f"item LLM: {name}")
    else:
        from huggingface_hub import constants, try_to_load_from_cache

        repo = SHORT_NAMES.get(name, name)
        found = try_to_load_from_cache(repo, "config.json")
        if isinstance(found, str):
            say(f"item LLM: {repo}, in the cache: {Path(found).parent}")
        else:
            endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
            say(
                f"item LLM: {repo} is not in the cache {constants.HF_HUB_CACHE}; it is downloaded from {endpoint}"
            )
    return name


def check_embeddings(folder: Path, family: Family, model_type: str, device: str, **options: object) -> Path:
    """The embeddings file of `model_type` in `folder`; ArtifactError names the script that writes it."""
    path = embeddings_path(folder, model_type)
    if path.is_file():
        return path
    others = sorted(p.stem.removeprefix("item_embeddings_") for p in folder.glob("item_embeddings_*.pt"))
    there = f"; there are those of {', '.join(others)} (--model_type {others[0]})" if others else ""
    command = family.command(family.vectors, model_type=model_type, device=device, **options)
    raise ArtifactError(f"{path} not found{there}; make it with: {command}")
