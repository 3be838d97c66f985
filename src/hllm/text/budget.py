"""Room for every field: a budget of tokens each, or the text's room shared so that each keeps its beginning.

A language model's tokenizer decides exactly (items/encoders/heads.py); here tokens are estimated, for what has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hllm.arguments import whole
from hllm.errors import ConfigError, DataError, unknown
from hllm.text.template import field_text

if TYPE_CHECKING:
    import polars as pl

_PIECE = re.compile(r"[A-Za-z]{1,5}|[^\sA-Za-z]")  # a token: five letters, or one digit, mark or other letter


def estimated_tokens(text: str) -> int:
    """About how many tokens `text` is: few tokenizers need more for English."""
    return sum(1 for _ in _PIECE.finditer(text))


def head(text: str, max_tokens: int) -> str:
    """The beginning of `text` of at most `max_tokens` estimated tokens, cut after a whole word where one fits."""
    end = 0
    for used, piece in enumerate(_PIECE.finditer(text)):
        if used == max_tokens:
            break
        end = piece.end()
    else:
        return text
    if (
        end < len(text)
        and not text[end].isspace()
        and text[max(end - 1, 0)].isalnum()
        and text[end].isalnum()
    ):
        start = re.search(r"\S+\Z", text[:end])
        if start and start.start():
            end = start.start()
    return text[:end].rstrip()


def parse_budgets(written: str) -> dict[str, int]:
    """{"title": 32, "description": 128} of "title=32,description=128"; ConfigError for anything else."""
    budgets = {}
    for part in filter(None, (p.strip() for p in written.split(","))):
        name, _, number = part.rpartition("=")
        if not name or not number.isdecimal() or not 0 < int(number) < 2**20 or name in budgets:
            raise ConfigError(
                f"field tokens {written[:80]!r}: {part[:80]!r} is no FIELD=TOKENS, as title=32,description=128"
            )
        budgets[name] = int(number)
    return budgets


def written_budgets(budgets: Mapping[str, int]) -> str:
    """As `parse_budgets` reads them, in the order of the names; "none" without any. ConfigError for a bad one."""
    written = ",".join(f"{name}={whole('field_tokens', n)}" for name, n in sorted(budgets.items()))
    return written if parse_budgets(written) else "none"


def cut_fields(items: pl.DataFrame, budgets: Mapping[str, int]) -> pl.DataFrame:
    """`items` whose fields keep their first tokens, as many as `budgets` allows. DataError for no such column."""
    for name in budgets:
        if name not in items.columns:
            raise DataError(unknown("text field", name, items.columns))
    return _changed(items, list(budgets), lambda texts: [head(t, budgets[n]) for n, t in texts.items()])


def water_level(sizes: Sequence[int], room: int) -> int:
    """The largest L for which the sum of min(size, L) is at most `room`; at least 1.

    Room is shared as water finds its level: what is small stays whole, and all that is cut keeps as much.
    """
    left, rest = room, sorted(sizes)
    for i, size in enumerate(rest):
        share = left // (len(rest) - i)
        if size > share:
            return max(share, 1)
        left -= size
    return max(rest, default=1)


def _changed(
    items: pl.DataFrame, fields: Sequence[str], change: Callable[[dict[str, str]], list[str]]
) -> pl.DataFrame:
    """`items` whose `fields` are, row by row, the texts that `change` makes of them."""
    import polars as pl

    columns = [[field_text(value) for value in items[name].to_list()] for name in fields]
    rows = [change(dict(zip(fields, row, strict=True))) for row in zip(*columns, strict=True)]
    made = zip(*rows, strict=True) if rows else ([] for _ in fields)
    return items.with_columns(
        pl.Series(name, list(values), dtype=pl.String) for name, values in zip(fields, made, strict=True)
    )
