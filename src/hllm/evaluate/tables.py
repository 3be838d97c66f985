"""Evaluations as a table for people: models as rows, metrics as columns, the result line below."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hllm.errors import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hllm.evaluate.metrics import Metrics

REPEATED_SHARE_ADVICE = 0.01  # above it, the seen filter decides too much: advise --keep-seen


def columns(results: Sequence[Metrics]) -> list[str]:
    """The metrics to show: those of the first result."""
    return results[0].shown()


def cells(metrics: Metrics, names: Sequence[str]) -> list[str]:
    """`0.0432 ±.0063` a metric: the value and half the width of its 95% interval."""
    out = []
    for name in names:
        text = f"{metrics[name]:.4f}"
        if name in metrics.intervals:
            low, high = metrics.intervals[name]
            text += f" ±{(high - low) / 2:.4f}".replace("±0.", "±.")
        out.append(text)
    return out


def notes(results: Sequence[Metrics]) -> list[str]:
    """What belongs under the table: the result line, and what the reader should know."""
    protocol = results[0].protocol
    lines = [results[0].result_line()]
    if protocol.seen == "filtered" and protocol.repeated_share > REPEATED_SHARE_ADVICE:
        lines.append(
            f"{protocol.repeated_share:.1%} of the held-out items were met before by their user and count as "
            "misses under the seen filter; use --keep-seen (keep_seen=True) for data with repeats."
        )
    tied = [f"{m.name} {m.protocol.tied_share:.2%}" for m in results[1:] if m.protocol.tied_share > 0]
    if tied:
        lines.append(f"Tied at the held-out item, counted against the model: {', '.join(tied)}.")
    return lines


def table(results: Sequence[Metrics]) -> RenderableType:
    """A rich renderable of one model, or of a model and its baselines, the model first."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names = columns(results)
    protocol = results[0].protocol
    grid = Table(
        title=Text(visible(f"{protocol.dataset}, {protocol.split}: mean over users ± half the 95% interval")),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    grid.add_column("model")
    for name in names:
        # Two lines a cell keep seven metrics within 80 columns.
        grid.add_column(name, justify="right")
    for i, metrics in enumerate(results):
        shown = [Text(cell.replace(" ", "\n")) for cell in cells(metrics, names)]
        grid.add_row(Text(metrics.name), *shown, style="bold" if i == 0 and len(results) > 1 else None)
    return Group(grid, *(Text(visible(line)) for line in notes(results)))


def text(results: Sequence[Metrics]) -> str:
    """The same as plain text; the result line is one line, however long."""
    names = columns(results)
    rows = [["model", *names]] + [[m.name, *cells(m, names)] for m in results]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = io.StringIO()
    for number, row in enumerate(rows):
        padded = [row[0].ljust(widths[0])] + [c.ljust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.write("  ".join(padded).rstrip() + "\n")
        if number == 0:
            lines.write("  ".join("-" * w for w in widths) + "\n")
    return lines.getvalue() + "\n".join(notes(results))
