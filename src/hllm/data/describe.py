"""What a dataset looks like: size, density, lengths, time span, ties, repeats, text.

`describe` returns plain values (JSON-ready), `render` draws them as a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hllm.data.tables.events import repeated_events, tied_events
from hllm.data.tables.schema import UNITS_PER_SECOND
from hllm.errors import visible

if TYPE_CHECKING:
    from rich.table import Table

    from hllm.data.dataset import Dataset

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def describe(dataset: Dataset) -> dict[str, Any]:
    """Statistics of a dataset as plain numbers and strings; needs no table library."""
    tokens, times, offsets = dataset.tokens, dataset.times, dataset.offsets
    lengths = np.diff(offsets)
    repeated = repeated_events(tokens, offsets)
    last = offsets[1:][lengths >= 2] - 1
    counts = dataset.meta["counts"]
    return {
        "name": dataset.meta["name"],
        "fingerprint": dataset.fingerprint,
        "n_users": dataset.n_users,
        "n_candidates": dataset.n_candidates,
        "n_catalogue": dataset.n_catalogue,
        "n_interactions": len(tokens),
        "density": len(tokens) / (dataset.n_users * dataset.n_candidates),
        "history_length": _percentiles(lengths),
        "item_events": _percentiles(np.bincount(tokens, minlength=dataset.n_candidates + 1)[1:]),
        "time": _time_span(times, dataset.meta["time_unit"]),
        "tied_share": _share(tied_events(times, offsets)),
        "last_two_tied_share": _share(times[last] == times[last - 1]),
        "repeated_share": _share(repeated),
        "training_events": int(dataset.train_mask.sum()),
        "split": dataset.meta["split"],
        "ties": dataset.meta["ties"],
        "filters": dataset.meta["filters"],
        "splits": {name: _query_stats(dataset, at, repeated) for name, at in dataset.queries.items()},
        "items_without_text": counts["items_without_text"],
        "catalogue_only_items": counts["catalogue_only_items"],
        "text_fields": dataset.meta["text_fields"],
        "counts": counts,
    }


def render(stats: dict[str, Any]) -> Table:
    """The dictionary of `describe` as a two-column rich table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(f"dataset {stats['name']}")), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in _lines(stats):
        table.add_row(label, Text(visible(value)))
    return table


def _lines(stats: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and text of every line of the table."""
    only = stats["catalogue_only_items"]
    fields = ", ".join(stats["text_fields"]) or "none"
    split = ", ".join(f"{k} {v}" for k, v in stats["split"].items() if k != "name")
    lines = [
        ("users", f"{stats['n_users']:,}"),
        ("items", f"{stats['n_candidates']:,} candidates, {only:,} only in the catalogue"),
        ("interactions", f"{stats['n_interactions']:,} (density {stats['density']:.3%})"),
        ("history length", _percentile_text(stats["history_length"])),
        ("events per item", _percentile_text(stats["item_events"])),
        ("time", stats["time"]["text"]),
        (
            "tied timestamps",
            f"{stats['tied_share']:.1%} of events; the last two events of "
            f"{stats['last_two_tied_share']:.1%} of users (order: {stats['ties']})",
        ),
        ("repeated items", f"{stats['repeated_share']:.2%} of events"),
        ("text", f"{fields}; {stats['items_without_text']:,} items without any"),
        ("split", f"{stats['split']['name']} ({split}), {stats['training_events']:,} training events"),
    ]
    for name, part in stats["splits"].items():
        lines.append(
            (
                name,
                f"{part['targets']:,} targets of {part['users']:,} users, "
                f"{part['repeated_share']:.2%} of them met before",
            )
        )
    counts = [f"{key.replace('_', ' ')} {value:,}" for key, value in stats["counts"].items() if value]
    lines.append(("counts", ", ".join(counts)))
    lines.append(("fingerprint", stats["fingerprint"]))
    return lines


def _query_stats(dataset: Dataset, positions: np.ndarray, repeated: np.ndarray) -> dict[str, Any]:
    users = np.searchsorted(dataset.offsets, positions, side="right")
    return {
        "targets": len(positions),
        "users": len(np.unique(users)),
        "repeated_share": _share(repeated[positions]),
    }


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _percentiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {"mean": 0.0, **{f"p{p}": 0 for p in PERCENTILES}}
    at = np.percentile(values, PERCENTILES, method="lower")
    return {"mean": float(values.mean()), **{f"p{p}": int(v) for p, v in zip(PERCENTILES, at, strict=True)}}


def _percentile_text(values: dict[str, float]) -> str:
    middle = ", ".join(f"{p}% {values[f'p{p}']:,}" for p in PERCENTILES[1:-1])
    return f"{values['p0']:,} to {values['p100']:,}, mean {values['mean']:,.1f} ({middle})"


def _time_span(times: np.ndarray, unit: str) -> dict[str, Any]:
    """First and last time in the source's unit, and a sentence for people."""
    first, last = int(times.min()), int(times.max())
    if unit == "index":
        text = f"positions {first:,} to {last:,} (no clock times)"
    else:
        days = (last - first) / UNITS_PER_SECOND[unit] / 86_400
        begin, end = (_moment(t, unit) for t in (first, last))
        text = f"{begin} to {end} UTC ({days:,.1f} days, kept in {unit})"
    return {"unit": unit, "first": first, "last": last, "text": text}


def _moment(time: int, unit: str) -> str:
    moment = np.array(time, dtype=np.int64).view(f"datetime64[{unit}]")
    return str(moment.astype("datetime64[s]")).replace("T", " ")
