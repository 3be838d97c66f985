"""Errors a user can act on.

Every message gives the offending value, the valid choices and the next command.
The command line prints the message as one line and exits with code 2; Python users
can catch `HLLMError` for all of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HLLMError(Exception):
    """Base class of every error that hllm raises on purpose."""


class DataError(HLLMError):
    """The user's tables, files or identifiers cannot be used as they are."""


class ConfigError(HLLMError):
    """An unknown or invalid setting, preset, name or combination of them."""


class ArtifactError(HLLMError):
    """A dataset, embedding store or run folder is missing, foreign, or damaged."""


class AmbiguousError(ArtifactError):
    """More than one artifact answers the request; the message lists them and how to choose."""


class FetchError(HLLMError):
    """A download failed; the message names every place that was tried."""


class DeviceError(HLLMError):
    """The requested device does not exist or lacks memory."""


class TrainingError(HLLMError):
    """Training stopped because it cannot lead anywhere: NaN, or collapsed vectors."""


def nearest(value: str, choices: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(str(value), list(choices), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown(kind: str, value: object, choices: Iterable[str]) -> str:
    """Describe an unknown name: the value, the nearest valid one, and all valid ones.

    >>> unknown("preset", "hlm-lite", ["demo", "hllm-lite"])
    "unknown preset 'hlm-lite' (did you mean 'hllm-lite'?); valid: demo, hllm-lite"
    """
    names = list(choices)
    return f"unknown {kind} {value!r}{nearest(str(value), names)}; valid: {', '.join(names)}"
