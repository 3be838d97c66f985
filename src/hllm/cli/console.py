"""What commands print with. Results go to standard output; all else to standard error.

`hllm ... --json | jq` and `hllm ... > table.txt` therefore never see a note or a bar. Of several processes the
first one prints.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hllm.errors import brief, visible
from hllm.ranks import speaks

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_WARNINGS = 5


def make_output_safe() -> None:
    """Let a terminal without UTF-8 show `?` for what it cannot, instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # absent under a test's capture
        if reconfigure is not None and (stream.encoding or "").lower().replace("-", "") != "utf8":
            reconfigure(errors="replace")


def output() -> Console:
    """The console of results. Made anew on each call, so that redirection is respected."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty(), quiet=not speaks())


def result(text: str) -> None:
    """Print a line of the result, control characters as `\\u001b`."""
    if speaks():
        print(visible(text))


def note(text: str) -> None:
    """Tell something in passing, on standard error."""
    if speaks():
        print(visible(text), file=sys.stderr, flush=True)


def error(text: str) -> None:
    """Print `error: ...` as exactly one line on standard error; nothing for an empty text."""
    line = visible(brief(" ".join(text.split())))
    if line:
        print(f"error: {line}", file=sys.stderr, flush=True)


def table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    text_columns: int = 1,
    caption: str | None = None,
) -> None:
    """Print a table of results; all but the first `text_columns` columns are right-aligned.

    Floats are shown with four decimals, the precision that recommendation tables use.
    `caption` is printed below, unbroken: a result line can be copied whole.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = None if title is None else Text(visible(title))
    grid = Table(title=shown, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for i, name in enumerate(columns):
        numeric = i >= text_columns
        grid.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        grid.add_row(*(_cell(value) for value in row))
    console = output()
    if not sys.stdout.isatty():
        console.width = 200  # a file has no width
    console.print(grid)
    if caption and not console.quiet:
        console.print(visible(caption), markup=False, soft_wrap=True)


def _cell(value: Any) -> str:
    from rich.markup import escape

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else escape(visible(str(value)))


@contextmanager
def warnings_summed_up() -> Iterator[None]:
    """Collect Python warnings of the block and print each kind once, with its count, at the end."""
    counts: Counter[str] = Counter()

    def collect(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        first_line = (str(message).strip().splitlines() or [""])[0]
        counts[f"{category.__name__}: {first_line[:200]}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)  # counted each time, not once a place
        warnings.showwarning = collect
        try:
            yield
        finally:
            for text, count in counts.most_common(SHOWN_WARNINGS):
                note(f"warning: {text}" + (f" ({count} times)" if count > 1 else ""))
            if len(counts) > SHOWN_WARNINGS:
                note(f"warning: and {len(counts) - SHOWN_WARNINGS} other kinds")
