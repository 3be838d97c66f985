"""Short names of item LLMs, and what a name given by a user means."""

from __future__ import annotations

from pathlib import Path

from hllm.errors import ConfigError, unknown
from hllm.items.encoders import kinds

CONTROLS = tuple(kinds.CONTROLS)

# short name -> name on the hub. Any other hub name works too, and so does a local folder.
SHORT_NAMES = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "baichuan2": "baichuan-inc/Baichuan2-7B-Chat",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-embedding-0.6b": "Qwen/Qwen3-Embedding-0.6B",
    "bge-small": "BAAI/bge-small-en-v1.5",
    "e5-small": "intfloat/e5-small-v2",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
# The hub's names mean the same as the short ones, with their owner and without.
_BY_HUB_NAME = {hub.lower(): short for short, hub in SHORT_NAMES.items()}
_BY_HUB_NAME |= {hub.split("/")[1]: short for hub, short in _BY_HUB_NAME.items()}


def canonical(name: str, must_exist: bool = True) -> str:
    """The one spelling under which a model is recorded.

    A short name, also for the hub name it stands for, with or without its owner; any other hub name
    as given; the absolute path of a local folder or GGUF file; "tfidf" or "random". Raises ConfigError
    for anything else, and for a path to nothing where it `must_exist`.
    """
    lowered = name.lower()
    if lowered in SHORT_NAMES or lowered in CONTROLS:
        return lowered
    try:
        path = Path(name).expanduser()
        exists = bool(name) and path.exists()
    except (RuntimeError, OSError, ValueError) as err:  # no such user's home; a name too long for a file
        raise ConfigError(f"item LLM {name[:80]!r} is no usable path: {err}") from err
    if exists:
        return str(path.resolve())
    if lowered in _BY_HUB_NAME:
        return _BY_HUB_NAME[lowered]
    if looks_like_path(name):
        if not must_exist:
            return str(path.resolve())
        raise ConfigError(
            f"item LLM folder {name!r} not found; give a folder with config.json and the weights, a .gguf "
            f"file, a hub name such as Qwen/Qwen3-0.6B, or one of {', '.join(choices())}"
        )
    if name.count("/") == 1 and not name.startswith("/"):
        return name
    message = unknown("item LLM", name, choices())
    raise ConfigError(f"{message}, a hub name such as Qwen/Qwen3-0.6B, or a local folder")


def choices() -> list[str]:
    """Every name with a meaning of its own."""
    return [*SHORT_NAMES, *CONTROLS]


def is_local(name: str) -> bool:
    """Whether a canonical name is a path on this machine."""
    return Path(name).is_absolute()


def looks_like_path(name: str) -> bool:
    """Whether a user who wrote `name` must have meant a file or folder."""
    return (
        name.startswith((".", "/", "~"))
        or "\\" in name
        or name.count("/") > 1
        or name.lower().endswith(".gguf")
    )
