"""Short names of item LLMs, and what a name given by a user means."""

from __future__ import annotations

import re
from pathlib import Path

from hllm.errors import ConfigError, nearest
from hllm.items.encoders import kinds
from hllm.items.encoders.registry import BACKBONES

CONTROLS = tuple(kinds.CONTROLS)
VECTORS = kinds.VECTORS

# short name -> name on the hub. Any other hub name works too, and so does a local folder.
SHORT_NAMES = {short: known.hub for short, known in BACKBONES.items()}
# The hub's names mean the same as the short ones, with their owner and without.
_BY_HUB_NAME = {hub.lower(): short for short, hub in SHORT_NAMES.items()}
_BY_HUB_NAME |= {hub.split("/")[1]: short for hub, short in _BY_HUB_NAME.items()}

_SHORT = f"{', '.join(CONTROLS)}, or a short name as `hllm embed --list` prints them"


def canonical(name: str, must_exist: bool = True) -> str:
    """The one spelling under which a model is recorded.

    A short name, also for the hub name it stands for, with or without its owner; any other hub name
    as given; the absolute path of a local folder or GGUF file; "tfidf" or "random"; "vectors:NAME". Raises ConfigError
    for anything else, and for a path to nothing where it `must_exist`.
    """
    lowered = name.lower()
    if lowered in SHORT_NAMES or lowered in CONTROLS:
        return lowered
    if name.startswith(VECTORS):  # what was brought in, under a name of the user's
        return VECTORS + vectors_name(name.removeprefix(VECTORS))
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
            f"file, a hub name such as Qwen/Qwen3-0.6B, {_SHORT}"
        )
    if name.count("/") == 1 and not name.startswith("/"):
        return name
    raise ConfigError(
        f"unknown item LLM {name!r}{nearest(name, choices())}; valid: {_SHORT}, a hub name such as "
        "Qwen/Qwen3-0.6B, or a local folder"
    )


def vectors_name(name: str) -> str:
    """`name`, or ConfigError if vectors that are brought in cannot be called so."""
    if not re.fullmatch(r"[\w.+-][\w.+ -]{0,99}", name):
        raise ConfigError(
            f"name {name[:80]!r} of vectors: letters, digits and . + - _ are allowed, 100 at most"
        )
    return name


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
