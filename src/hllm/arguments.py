"""Arguments of public calls, checked by type: a value that cannot be is a ConfigError that names argument and value."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from hllm.errors import ConfigError, unknown
from hllm.settings import INT_MAX, shown


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number (numpy's too) from `least` to INT_MAX."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= INT_MAX:
        raise ConfigError(f"{name}={shown(value)}: must be a whole number from {least} (to {INT_MAX:,})")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether `value` is a number, numpy's too, and no flag."""
    return isinstance(value, Real) and not isinstance(value, bool)


def flag(name: str, value: Any) -> bool:
    """True or False, numpy's too."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise ConfigError(f"{name}={shown(value)}: must be True or False")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A text without NUL and halves of characters, which no file and no model can hold."""
    if not isinstance(value, str):
        raise ConfigError(f"{name}={shown(value)}: must be a text, not {type(value).__name__}")
    try:
        if "\x00" not in value and value.encode() is not None:
            return value
    except UnicodeEncodeError:
        pass
    raise ConfigError(f"{name}={shown(value)}: has a character that no file can hold")


def one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """One of the names in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(unknown(name, value, choices))
    return value


def path(name: str, value: Any) -> Path:
    """A path, as text or as an object that is one."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ConfigError(f"{name}={shown(value)}: must be a path, not {type(value).__name__}")
    return Path(text(name, os.fspath(value)))


def seconds_of(name: str, value: object) -> float:
    """A length of time such as "90s", "30m" or "1h30m", in seconds; ConfigError for another form or none at all."""
    number = r"(\d+(?:\.\d+)?)"
    found = re.fullmatch(f"(?:{number}h)?(?:{number}m)?(?:{number}s)?", str(value).replace(" ", ""))
    parts = [float(part or 0) for part in found.groups()] if found else []
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{name} {shown(value)}: must be a length of time, for example 90s, 30m or 1h30m")
    return seconds
