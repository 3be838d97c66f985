"""One record a line: JSON, or the Python literals of Amazon's 2014 catalogues.

Nothing is evaluated. A whole line is parsed by `json` or `ast.literal_eval`; where millions of
lines are read for two fields, `LiteralScanner` walks over the literal with one compiled
expression, skips the lists of related products unparsed and hands back the wanted texts. A line
that it does not fully understand goes to `ast.literal_eval`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from hllm.data.reading.lines import decode

# Possessive quantifiers (3.11): a line that does not match is given up at once, not retried.
STRING = r"'(?:[^'\\]++|\\.)*+'|\"(?:[^\"\\]++|\\.)*+\""
ATOM = r"[-+.\w]++"  # numbers, None, True
# Lists of product codes, most of a 2014 catalogue, in one run. Where a bracket inside a string ends
# the run too early, what follows is no pair and the line goes to the slow way.
CODES = r"\['[0-9A-Za-z_', ]*+\]"


def _nested(depth: int) -> str:
    """An expression for a list or dictionary with up to `depth` levels inside it."""
    inner = rf"[^'\"\[\]{{}}]++|{STRING}|{CODES}"
    for _ in range(depth):
        inner = rf"[^'\"\[\]{{}}]++|{STRING}|{CODES}|[\[{{](?:{inner})*+[\]}}]"
    return rf"{CODES}|[\[{{](?:{inner})*+[\]}}]"


OPEN = ord("{")
SKIPPABLE = rf"{STRING}|{ATOM}|{_nested(2)}"


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError for any that Python does not take, whatever its depth."""
    try:
        return json.loads(text)
    except RecursionError as err:
        raise ValueError("lists or objects are nested too deeply") from err


def parse_record(raw: bytes) -> dict[str, Any]:
    """A line as a dictionary, JSON first, then a Python literal.

    Raises ValueError with what is wrong. The names NaN, nan and inf are allowed in either form
    and give float values.
    """
    text = decode(raw)
    try:
        value = parse_json(text)
    except ValueError:
        value = _literal(text)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where a record in braces is expected")
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError) as err:
        raise ValueError("neither JSON nor a Python literal") from err
    except (ValueError, TypeError):
        pass  # a name or an operation: NaN is harmless, all else is refused
    try:
        return ast.literal_eval(re.sub(r"(?<=: )(?:nan|NaN|inf|Infinity)(?=[,}])", "None", text))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as err:
        raise ValueError("a Python expression that is not a plain literal") from err


class LiteralScanner:
    """Reads the `wanted` fields out of records that are Python literals of Amazon's kind."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self.wanted = tuple(wanted)
        names = "|".join(map(re.escape, wanted))
        other = rf"'(?!(?:{names})')\w++': (?:{SKIPPABLE})"
        pair = rf"'(\w++)': (?:({STRING})|({ATOM}|{_nested(2)}))(?:, |(?=\}}))"
        self.pair = re.compile(rf"(?:{other}(?:, |(?=\}})))*+(?:{pair}|(\}}\s*+\Z))".encode(), re.DOTALL)

    def __call__(self, raw: bytes) -> dict[str, Any]:
        """The wanted fields of one line; absent ones are left out. Raises ValueError as `parse_record`."""
        found = self._scan(raw)
        if found is None:
            record = parse_record(raw)
            found = {name: record[name] for name in self.wanted if name in record}
        return found

    def _scan(self, raw: bytes) -> dict[str, Any] | None:
        """The fields if the whole line is understood, else None."""
        found: dict[str, Any] = {}
        at, match = 1, self.pair.match
        while (pair := match(raw, at)) is not None and raw[0] == OPEN:
            name, text, other, end = pair.groups()
            if end is not None:
                return found
            try:
                found[name.decode()] = _string(text) if text else ast.literal_eval(decode(other))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return None
            at = pair.end()
        return None


SIMPLE_ESCAPES = ((b"\\n", b"\n"), (b"\\'", b"'"), (b'\\"', b'"'), (b"\\t", b"\t"), (b"\\r", b"\r"))


def _string(raw: bytes) -> Any:
    """The text of a string literal; `ast` sees only those with unusual escapes."""
    escapes = raw.count(b"\\")
    if escapes:
        if b"\\\\" in raw or escapes != sum(raw.count(mark) for mark, _ in SIMPLE_ESCAPES):
            return ast.literal_eval(decode(raw))
        for mark, plain in SIMPLE_ESCAPES:
            raw = raw.replace(mark, plain)
    return decode(raw[1:-1])
