"""Who cannot be answered from a history: unknown, or without one. `unknown` says what happens to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.errors import ConfigError, DataError, unknown

if TYPE_CHECKING:
    from hllm.data.batches.queries import Queries

UNKNOWN = ("error", "skip", "popular")
SHOWN = 10


class LeftOut:
    """Collects what is unknown or empty, so that one error names all of it, or notes count it.

    how  "error": DataError; "skip": they get nothing; "popular": they get what is popular
    """

    def __init__(self, how: str = "error") -> None:
        if how not in UNKNOWN:
            raise ConfigError(unknown("way with the unknown", how, UNKNOWN))
        self.how = how
        self.found: dict[str, list[Any]] = {}
        self.strangers: set[str] = set()  # repr of the names of queries that are empty because of it
        self.first: DataError | None = None
        self.notes: list[str] = []

    def attempt(self, find: Callable[[Any], int], value: Any, kind: str) -> int | None:
        """`find(value)`, or None where it is unknown: an id of the `kind` "user_id" or "item_id"."""
        try:
            return find(value)
        except DataError as err:
            self.first = self.first or err
            self.found.setdefault(kind, []).append(value)
            return None

    def check(self) -> None:
        """Raise DataError naming what was unknown so far, if that is an error; else note it."""
        lines = {kind: _listed(f"unknown {kind}", values) for kind, values in self.found.items()}
        if self.how == "error" and self.first is not None:
            if sum(map(len, self.found.values())) == 1:
                raise self.first
            raise DataError(f"{'; '.join(lines.values())}; {ADVICE}")
        for kind, line in lines.items():
            self.notes.append(
                f"{line}: {self._fate if kind == 'user_id' else 'their histories are ' + self._fate}"
            )

    def check_empty(self, queries: Queries, names: Sequence[Any], what: str, rows: range) -> None:
        """Raise DataError naming those of `rows` without any event, if that is an error; `what` they are called."""
        part = slice(rows.start, rows.stop)
        none = rows.start + np.flatnonzero(queries.ends[part] == queries.starts[part])
        empty = [names[row] for row in none.tolist() if repr(names[row]) not in self.strangers]
        if not empty:
            return
        line = f"{what} {empty[0]!r} is empty" if len(empty) == 1 else _listed(f"empty {what}", empty)
        if self.how == "error":
            raise DataError(f"{line}; give at least one item. {ADVICE}")
        self.notes.append(f"{line}: {self._fate}")

    @property
    def _fate(self) -> str:
        return "skipped" if self.how == "skip" else "given what is popular"


ADVICE = (
    'for someone new pass history=[[item_id, ...]]; unknown="skip" leaves out who is unknown or has no history, '
    '"popular" gives them what is popular'
)


def _listed(title: str, values: Sequence[Any]) -> str:
    """`title 'a', 'b' (2 in all)`, with ten of the values at most."""
    distinct = list(dict.fromkeys(map(repr, values)))
    shown = f"{title} {', '.join(distinct[:SHOWN])}{', ...' if len(distinct) > SHOWN else ''}"
    return shown if len(distinct) == 1 else f"{shown} ({len(distinct):,} in all)"
