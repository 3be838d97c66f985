"""Errors a user can act on.

Every message gives the offending value, the valid choices and the next command.
The command line prints the message as one line and exits with code 2; Python users
can catch `HLLMError` for all of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_VALUE, LONGEST_MESSAGE = 80, 4000
_QUOTED = re.compile(r"""(?<!\w)('(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")(?!\w)""", re.DOTALL)
_UNBROKEN = re.compile(rf"[^\s/\\]{{{LONGEST_VALUE + 1},}}")
# What a terminal obeys instead of showing: control characters, and marks that reorder or break lines.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with control characters as `\\u001b`: a terminal shows them and does not obey."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def brief(message: str) -> str:
    """The message with its quoted values, and words without an end, cut to 80 characters.

    >>> len(brief(f"title {'x' * 1_000_000!r} is too long"))
    98
    """
    if len(message) <= LONGEST_VALUE:
        return message
    message = _QUOTED.sub(lambda match: _cut(match[0], match[0][-1]), message)
    message = _UNBROKEN.sub(lambda match: _cut(match[0]), message)
    return message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 3]}..."


def _cut(text: str, end: str = "") -> str:
    if len(text) <= LONGEST_VALUE + 2 * len(end):
        return text
    return f"{text[: LONGEST_VALUE - 3 - len(end)]}...{end}"


class HLLMError(Exception):
    """Base class of every error that hllm raises on purpose."""

    def __str__(self) -> str:
        return brief(" ".join(line.strip() for line in super().__str__().splitlines()))


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
    by_small_letters = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(value)[:200].lower(), by_small_letters, n=1, cutoff=0.6)
    return f" (did you mean {by_small_letters[close[0]]!r}?)" if close else ""


def unknown(kind: str, value: object, choices: Iterable[str]) -> str:
    """Describe an unknown name: the value, the nearest valid one, and all valid ones.

    >>> unknown("preset", "hlm-lite", ["demo", "hllm-lite"])
    "unknown preset 'hlm-lite' (did you mean 'hllm-lite'?); valid: demo, hllm-lite"
    """
    names = list(choices)
    return f"unknown {kind} {value!r}{nearest(str(value), names)}; valid: {', '.join(names)}"
